/* Kernels: registered, launched, counted if asked (FAKECUDA_KERNELS=1), never run. */
#include "device.h"

#include <stdio.h>
#include <stdlib.h>

/* ---- counting by name: an open hash table from a kernel's host function to its name and launches */

#define TABLE_BITS 20 /* torch registers about 100,000 kernels */
#define TABLE_SIZE ((size_t)1 << TABLE_BITS)

static struct {
  const void *function;
  const char *name;
  long launches;
} *kernels;

static size_t slot(const void *function) {
  size_t i = ((uintptr_t)function >> 4) * 0x9E3779B97F4A7C15ull >> (64 - TABLE_BITS); /* Fibonacci hashing */
  while (kernels[i].function && kernels[i].function != function) i = (i + 1) & (TABLE_SIZE - 1);
  return i;
}

static cudaError_t launched(const void *function) {
  if (device()->count_kernels && kernels) {
    size_t i = slot(function);
    if (!kernels[i].function) kernels[i].function = function, kernels[i].name = "(unregistered)";
    __sync_fetch_and_add(&kernels[i].launches, 1);
  }
  return cudaSuccess;
}

EXPORT void fakecuda_kernels_reset(void) {
  for (size_t i = 0; kernels && i < TABLE_SIZE; i++) kernels[i].launches = 0;
}
EXPORT int fakecuda_kernels_dump(const char *path) { /* "launches mangled-name" lines */
  FILE *out = fopen(path, "w");
  if (!out) return -1;
  for (size_t i = 0; kernels && i < TABLE_SIZE; i++)
    if (kernels[i].launches) fprintf(out, "%ld %s\n", kernels[i].launches, kernels[i].name);
  return fclose(out);
}

/* ---- registration: called by the static constructors of every library with kernels in it */

EXPORT void **__cudaRegisterFatBinary(void *fatbin) {
  static void *handle[2];
  (void)fatbin;
  return handle;
}
EXPORT void __cudaRegisterFatBinaryEnd(void **h) { (void)h; }
EXPORT void __cudaUnregisterFatBinary(void **h) { (void)h; }
EXPORT char __cudaInitModule(void **h) { (void)h; return 1; }
EXPORT void __cudaRegisterVar(void **h, char *host, char *dev, const char *name, int ext, size_t size, int constant, int global) {
  (void)h, (void)host, (void)dev, (void)name, (void)ext, (void)size, (void)constant, (void)global;
}
EXPORT void __cudaRegisterFunction(void **h, const char *function, char *dev, const char *name, int thread_limit, void *tid, void *bid,
                                   void *block, void *grid, int *warp) {
  (void)h, (void)dev, (void)thread_limit, (void)tid, (void)bid, (void)block, (void)grid, (void)warp;
  if (!device()->count_kernels) return;
  if (!kernels) kernels = calloc(TABLE_SIZE, sizeof *kernels);
  size_t i = slot(function);
  kernels[i].function = function, kernels[i].name = name;
}

/* ---- launches. kernel<<<grid, block>>>() pushes its configuration, the compiler's host stub pops it and calls cudaLaunchKernel. */

#define MAX_NESTED 64
static __thread struct {
  dim3 grid, block;
  size_t smem;
  void *stream;
} pushed[MAX_NESTED];
static __thread int num_pushed;

EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t smem, void *stream) {
  if (num_pushed == MAX_NESTED) return 1;
  pushed[num_pushed].grid = grid, pushed[num_pushed].block = block;
  pushed[num_pushed].smem = smem, pushed[num_pushed].stream = stream;
  num_pushed++;
  return 0;
}
EXPORT cudaError_t __cudaPopCallConfiguration(dim3 *grid, dim3 *block, size_t *smem, void *stream) {
  if (!num_pushed) return cudaErrorInvalidConfiguration;
  num_pushed--;
  *grid = pushed[num_pushed].grid, *block = pushed[num_pushed].block;
  *smem = pushed[num_pushed].smem, *(void **)stream = pushed[num_pushed].stream;
  return cudaSuccess;
}
EXPORT cudaError_t __cudaGetKernel(cudaKernel_t *kernel, const void *function) {
  *kernel = (cudaKernel_t)function; /* the handle of a kernel is its host function */
  return cudaSuccess;
}
EXPORT cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s) {
  (void)g, (void)b, (void)a, (void)m, (void)s;
  return launched(kernel);
}
EXPORT cudaError_t cudaLaunchKernel(const void *function, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s) {
  (void)g, (void)b, (void)a, (void)m, (void)s;
  return launched(function);
}
EXPORT cudaError_t cudaLaunchCooperativeKernel(const void *function, dim3 g, dim3 b, void **a, size_t m, cudaStream_t s) {
  (void)g, (void)b, (void)a, (void)m, (void)s;
  return launched(function);
}
EXPORT cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t *config, const void *function, void **a) {
  (void)config, (void)a;
  return launched(function);
}

/* ---- what host code asks about kernels before it launches them */

#define ASSUMED_REGISTERS 64 /* per thread, of every kernel; occupancy decides split counts, see device.c on why that is enough */

static int binary_version(void) { /* the cubin of torch's wheel that this card would run: 8.9 runs 8.6's */
  int cc = device()->card.cc;
  return cc == 89 ? 86 : cc;
}
EXPORT cudaError_t cudaFuncGetAttributes(struct cudaFuncAttributes *a, const void *function) {
  (void)function;
  *a = (struct cudaFuncAttributes){0};
  a->maxThreadsPerBlock = 1024;
  a->numRegs = ASSUMED_REGISTERS;
  a->ptxVersion = a->binaryVersion = binary_version();
  a->maxDynamicSharedSizeBytes = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
  return cudaSuccess;
}

static int occupancy(int threads, size_t smem) { /* blocks per multiprocessor: the tightest of threads, registers, shared memory */
  const card_t *card = &device()->card;
  if (threads < 1) threads = 1;
  int n = card->threads_per_sm / threads;
  int by_registers = device_attribute(cudaDevAttrMaxRegistersPerMultiprocessor) / (ASSUMED_REGISTERS * threads);
  if (by_registers < n) n = by_registers;
  if (smem && (int)(card->smem_per_sm / (smem + 1024)) < n) n = (int)(card->smem_per_sm / (smem + 1024));
  if (n > card->blocks_per_sm) n = card->blocks_per_sm;
  return n < 1 ? 1 : n;
}
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *n, const void *f, int threads, size_t smem) {
  (void)f;
  *n = occupancy(threads, smem);
  return cudaSuccess;
}
EXPORT cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *n, const void *f, int threads, size_t smem, unsigned fl) {
  (void)f, (void)fl;
  *n = occupancy(threads, smem);
  return cudaSuccess;
}
EXPORT CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *n, CUfunction f, int threads, size_t smem) {
  (void)f;
  *n = occupancy(threads, smem);
  return CUDA_SUCCESS;
}
