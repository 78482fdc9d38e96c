/* The CUDA driver API: torch, Triton and NVML's users look its functions up by name at run time. Memory functions are in memory.c. */
#include "device.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

EXPORT CUresult cuInit(unsigned f) { (void)f; return CUDA_SUCCESS; }
EXPORT CUresult cuDriverGetVersion(int *v) { *v = CUDA_VERSION; return CUDA_SUCCESS; }
EXPORT CUresult cuDeviceGet(CUdevice *d, int i) { (void)i; *d = 0; return CUDA_SUCCESS; }
EXPORT CUresult cuDeviceGetCount(int *n) { *n = 1; return CUDA_SUCCESS; }
EXPORT CUresult cuDeviceGetName(char *text, int size, CUdevice d) {
  (void)d;
  snprintf(text, (size_t)size, "%s", device()->name);
  return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceTotalMem(size_t *bytes, CUdevice d) {
  (void)d;
  *bytes = device()->total_bytes;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGetAttribute(int *v, CUdevice_attribute name, CUdevice d) {
  (void)d;
  *v = device_attribute((int)name);
  return CUDA_SUCCESS;
}
EXPORT CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice d) {
  (void)d;
  memcpy(uuid, device_uuid, sizeof device_uuid);
  return CUDA_SUCCESS;
}

/* ---- contexts: there is one, always current */

static CUcontext the_context(void) { return (CUcontext)device(); }

EXPORT CUresult cuDevicePrimaryCtxGetState(CUdevice d, unsigned *flags, int *active) {
  (void)d;
  if (flags) *flags = 0;
  if (active) *active = 1;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice d) { (void)d; *c = the_context(); return CUDA_SUCCESS; }
EXPORT CUresult cuCtxGetCurrent(CUcontext *c) { *c = the_context(); return CUDA_SUCCESS; }
EXPORT CUresult cuCtxGetDevice(CUdevice *d) { *d = 0; return CUDA_SUCCESS; }

EXPORT CUresult cuGetErrorString(CUresult e, const char **text) {
  *text = e ? "fakecuda driver error" : "no error";
  return CUDA_SUCCESS;
}
EXPORT CUresult cuGetErrorName(CUresult e, const char **text) {
  *text = e ? "CUDA_ERROR_FAKE" : "CUDA_SUCCESS";
  return CUDA_SUCCESS;
}

/* ---- look-up by name */

static void *entry(const char *name) { /* newest version of a driver function that is defined here or in stubs.c */
  char versioned[256];
  void *p;
  for (int v = 4; v > 1; v--) {
    snprintf(versioned, sizeof versioned, "%s_v%d", name, v);
    if ((p = dlsym(RTLD_DEFAULT, versioned))) return p;
  }
  if (!(p = dlsym(RTLD_DEFAULT, name)) && device()->trace) fprintf(stderr, "fakecuda: no driver entry %s\n", name);
  return p;
}
EXPORT cudaError_t cudaGetDriverEntryPointByVersion(const char *name, void **f, unsigned version, unsigned long long flags,
                                                    enum cudaDriverEntryPointQueryResult *status) {
  (void)version, (void)flags;
  *f = entry(name);
  if (status) *status = *f ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
EXPORT cudaError_t cudaGetDriverEntryPoint(const char *name, void **f, unsigned long long flags,
                                           enum cudaDriverEntryPointQueryResult *status) {
  return cudaGetDriverEntryPointByVersion(name, f, 0, flags, status);
}
EXPORT CUresult cuGetProcAddress(const char *name, void **f, int version, cuuint64_t flags, CUdriverProcAddressQueryResult *status) {
  (void)version, (void)flags;
  *f = entry(name);
  if (status) *status = *f ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
  return *f ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
