/* NVML, torch.cuda.mem_get_info's and nvidia-smi's source: one process (this one); used = context + device allocations.
 * Statuses are ints here: the wheels bring no nvml.h. */
#include "device.h"

#include <stdio.h>
#include <unistd.h>

enum { NVML_SUCCESS = 0, NVML_ERROR_NOT_SUPPORTED = 3, NVML_ERROR_INSUFFICIENT_SIZE = 7 };

typedef struct {
  unsigned pid;
  unsigned long long used;
} process_t; /* nvmlProcessInfo_v1_t */
typedef struct {
  unsigned long long total, free, used;
} memory_t; /* nvmlMemory_t */

static void *the_handle(void) { return (void *)device(); }
static unsigned long long used_bytes(void) { return device()->context_bytes + device_used_bytes(); }

EXPORT int nvmlInit_v2(void) { return NVML_SUCCESS; }
EXPORT int nvmlInit(void) { return NVML_SUCCESS; }
EXPORT int nvmlShutdown(void) { return NVML_SUCCESS; }
EXPORT const char *nvmlErrorString(int e) { (void)e; return "fakecuda NVML"; }
EXPORT int nvmlSystemGetCudaDriverVersion_v2(int *v) { *v = CUDA_VERSION; return NVML_SUCCESS; }
EXPORT int nvmlDeviceGetCount_v2(unsigned *n) { *n = 1; return NVML_SUCCESS; }
EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned i, void **h) { (void)i; *h = the_handle(); return NVML_SUCCESS; }
EXPORT int nvmlDeviceGetHandleByPciBusId_v2(const char *s, void **h) { (void)s; *h = the_handle(); return NVML_SUCCESS; }
EXPORT int nvmlDeviceGetHandleByUUID(const char *s, void **h) { (void)s; *h = the_handle(); return NVML_SUCCESS; }
EXPORT int nvmlDeviceGetUUID(void *h, char *text, unsigned size) {
  (void)h; /* device_uuid in the form NVML prints */
  snprintf(text, size, "GPU-66616b65-6375-6461-2d64-657669636530");
  return NVML_SUCCESS;
}
EXPORT int nvmlDeviceGetNvLinkRemoteDeviceType(void) { return NVML_ERROR_NOT_SUPPORTED; }
EXPORT int nvmlDeviceGetNvLinkRemotePciInfo_v2(void) { return NVML_ERROR_NOT_SUPPORTED; }
EXPORT int nvmlDeviceGetGpuFabricInfoV(void) { return NVML_ERROR_NOT_SUPPORTED; }
EXPORT int nvmlDeviceGetMemoryInfo(void *h, memory_t *m) {
  (void)h;
  m->total = device()->total_bytes;
  m->used = used_bytes();
  m->free = m->total - m->used;
  return NVML_SUCCESS;
}
EXPORT int nvmlDeviceGetComputeRunningProcesses(void *h, unsigned *n, process_t *p) {
  (void)h;
  int too_small = !p || *n < 1;
  *n = 1;
  if (too_small) return NVML_ERROR_INSUFFICIENT_SIZE;
  p[0].pid = (unsigned)getpid();
  p[0].used = used_bytes();
  return NVML_SUCCESS;
}
