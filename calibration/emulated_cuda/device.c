/* Which card it is: read from the environment once, answered in attributes and properties. */
#include "device.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* One card per compute capability. Multiprocessors, shared memory and limits decide kernel variants (split-k, tile sizes), not tensor
 * sizes: FAKECUDA_SM_COUNT 16 and 300 gave the same peaks as 128. Source: CUDA C++ Programming Guide, "Technical specifications per
 * compute capability"; SM count and L2 size from the cards' data sheets. */
static const card_t cards[] = {
    {75, 40, 1024, 16, 65536, 4 * MIB, "Tesla T4"},
    {80, 108, 2048, 32, 167936, 40 * MIB, "NVIDIA A100-SXM4-80GB"},
    {86, 82, 1536, 16, 102400, 6 * MIB, "NVIDIA GeForce RTX 3090"},
    {89, 128, 1536, 24, 102400, 72 * MIB, "NVIDIA GeForce RTX 4090"},
    {90, 132, 2048, 32, 233472, 50 * MIB, "NVIDIA H100 80GB HBM3"},
    {100, 148, 2048, 32, 233472, 126 * MIB, "NVIDIA B200"},
    {120, 170, 1536, 24, 102400, 96 * MIB, "NVIDIA GeForce RTX 5090"},
};

const char device_uuid[16] = "fakecuda-device0"; /* 16 bytes, no terminator */

static device_t the_device;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static double env_number(const char *name, double otherwise) {
  const char *text = getenv(name);
  if (!text || !*text) return otherwise;
  char *end;
  double value = strtod(text, &end);
  if (*end) {
    fprintf(stderr, "fakecuda: %s=%s is not a number\n", name, text);
    _exit(2);
  }
  return value;
}

static const card_t *card_for(int cc) {
  for (size_t i = 0; i < sizeof cards / sizeof *cards; i++)
    if (cards[i].cc == cc) return &cards[i];
  fprintf(stderr, "fakecuda: FAKECUDA_CC: no card of compute capability %d.%d; there are 7.5 8.0 8.6 8.9 9.0 10.0 12.0\n", cc / 10, cc % 10);
  _exit(2);
}

static void read_environment(void) {
  the_device.card = *card_for((int)(env_number("FAKECUDA_CC", 9.0) * 10 + 0.5));
  const char *name = getenv("FAKECUDA_NAME"), *ws = getenv("FAKECUDA_CUDNN_WS");
  snprintf(the_device.name, sizeof the_device.name, "%s", name && *name ? name : the_device.card.name);
  the_device.card.sms = (int)env_number("FAKECUDA_SM_COUNT", the_device.card.sms);
  the_device.total_bytes = (size_t)(env_number("FAKECUDA_TOTAL_MIB", 81559) * MIB); /* H100 80GB as torch reports it */
  the_device.context_bytes = (size_t)(env_number("FAKECUDA_CONTEXT_MIB", 500) * MIB);
  the_device.cudnn_ws = ws && !strcmp(ws, "layout") ? CUDNN_WS_LAYOUT : (size_t)env_number("FAKECUDA_CUDNN_WS", 0);
  the_device.trace = (int)env_number("FAKECUDA_TRACE", 0);
  the_device.count_kernels = (int)env_number("FAKECUDA_KERNELS", 0);
}

const device_t *device(void) {
  pthread_once(&once, read_environment);
  return &the_device;
}

int device_attribute(int name) {
  const card_t *card = &device()->card;
  int reserved_smem = card->cc >= 80 ? 1024 : 0; /* the driver keeps 1 KiB of each block's shared memory since Ampere */
  switch (name) {
  case cudaDevAttrMaxThreadsPerBlock:
  case cudaDevAttrMaxBlockDimX:
  case cudaDevAttrMaxBlockDimY: return 1024;
  case cudaDevAttrMaxBlockDimZ: return 64;
  case cudaDevAttrMaxGridDimX: return 2147483647;
  case cudaDevAttrMaxGridDimY:
  case cudaDevAttrMaxGridDimZ: return 65535;
  case cudaDevAttrMaxSharedMemoryPerBlock: return 49152;
  case cudaDevAttrTotalConstantMemory: return 65536;
  case cudaDevAttrWarpSize: return 32;
  case cudaDevAttrMaxPitch: return 2147483647;
  case cudaDevAttrMaxRegistersPerBlock:
  case cudaDevAttrMaxRegistersPerMultiprocessor: return 65536;
  case cudaDevAttrClockRate: return 1500000;
  case cudaDevAttrTextureAlignment: return 512;
  case cudaDevAttrMultiProcessorCount: return card->sms;
  case cudaDevAttrL2CacheSize: return (int)card->l2_bytes;
  case cudaDevAttrMaxThreadsPerMultiProcessor: return card->threads_per_sm;
  case cudaDevAttrUnifiedAddressing:
  case cudaDevAttrConcurrentKernels:
  case cudaDevAttrCanMapHostMemory:
  case cudaDevAttrStreamPrioritiesSupported:
  case cudaDevAttrCooperativeLaunch:
  case cudaDevAttrMemoryPoolsSupported:
  case cudaDevAttrManagedMemory:
  case cudaDevAttrHostRegisterSupported:
  case CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED: return 1;
  case cudaDevAttrComputeCapabilityMajor: return card->cc / 10;
  case cudaDevAttrComputeCapabilityMinor: return card->cc % 10;
  case cudaDevAttrMaxSharedMemoryPerMultiprocessor: return (int)card->smem_per_sm;
  case cudaDevAttrMaxSharedMemoryPerBlockOptin: return (int)card->smem_per_sm - reserved_smem;
  case cudaDevAttrReservedSharedMemoryPerBlock: return reserved_smem;
  case cudaDevAttrMaxBlocksPerMultiprocessor: return card->blocks_per_sm;
  case cudaDevAttrClusterLaunch: return card->cc >= 90;
  default: return 0;
  }
}

EXPORT cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int d) {
  (void)d;
  const device_t *dev = device();
  const card_t *card = &dev->card;
  memset(p, 0, sizeof *p);
  memcpy(p->name, dev->name, sizeof p->name);
  memcpy(&p->uuid, device_uuid, sizeof device_uuid);
  p->totalGlobalMem = dev->total_bytes;
  p->sharedMemPerBlock = (size_t)device_attribute(cudaDevAttrMaxSharedMemoryPerBlock);
  p->regsPerBlock = p->regsPerMultiprocessor = device_attribute(cudaDevAttrMaxRegistersPerBlock);
  p->warpSize = device_attribute(cudaDevAttrWarpSize);
  p->memPitch = (size_t)device_attribute(cudaDevAttrMaxPitch);
  p->maxThreadsPerBlock = p->maxThreadsDim[0] = p->maxThreadsDim[1] = device_attribute(cudaDevAttrMaxThreadsPerBlock);
  p->maxThreadsDim[2] = device_attribute(cudaDevAttrMaxBlockDimZ);
  p->maxGridSize[0] = device_attribute(cudaDevAttrMaxGridDimX);
  p->maxGridSize[1] = p->maxGridSize[2] = device_attribute(cudaDevAttrMaxGridDimY);
  p->totalConstMem = (size_t)device_attribute(cudaDevAttrTotalConstantMemory);
  p->major = card->cc / 10;
  p->minor = card->cc % 10;
  p->textureAlignment = (size_t)device_attribute(cudaDevAttrTextureAlignment);
  p->multiProcessorCount = card->sms;
  p->canMapHostMemory = p->concurrentKernels = p->unifiedAddressing = 1;
  p->pciBusID = 1;
  p->asyncEngineCount = 2;
  p->memoryBusWidth = 384;
  p->l2CacheSize = (int)card->l2_bytes;
  p->maxThreadsPerMultiProcessor = card->threads_per_sm;
  p->streamPrioritiesSupported = p->managedMemory = p->cooperativeLaunch = 1;
  p->sharedMemPerMultiprocessor = card->smem_per_sm;
  p->sharedMemPerBlockOptin = (size_t)device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  p->maxBlocksPerMultiProcessor = card->blocks_per_sm;
  p->reservedSharedMemPerBlock = (size_t)device_attribute(cudaDevAttrReservedSharedMemoryPerBlock);
  p->hostRegisterSupported = p->memoryPoolsSupported = 1;
  p->clusterLaunch = card->cc >= 90;
  return cudaSuccess;
}

EXPORT cudaError_t cudaGetDeviceCount(int *n) { *n = 1; return cudaSuccess; }
EXPORT cudaError_t cudaGetDevice(int *d) { *d = 0; return cudaSuccess; }
EXPORT cudaError_t cudaSetDevice(int d) { return d == 0 ? cudaSuccess : set_last_error(cudaErrorInvalidDevice); }
EXPORT cudaError_t cudaDriverGetVersion(int *v) { *v = CUDART_VERSION; return cudaSuccess; }
EXPORT cudaError_t cudaRuntimeGetVersion(int *v) { *v = CUDART_VERSION; return cudaSuccess; }
EXPORT cudaError_t cudaDeviceGetAttribute(int *v, enum cudaDeviceAttr name, int d) {
  (void)d;
  *v = device_attribute((int)name);
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetPCIBusId(char *text, int size, int d) {
  (void)d;
  snprintf(text, (size_t)size, "0000:01:00.0");
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceCanAccessPeer(int *v, int a, int b) {
  (void)a, (void)b;
  *v = 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  if (least) *least = 0;
  if (greatest) *greatest = -5;
  return cudaSuccess;
}

/* stubs.c: a no-op was called for the first time */
EXPORT void fakecuda_note(const char *what) {
  if (device()->trace) fprintf(stderr, "fakecuda: stub %s\n", what);
}
