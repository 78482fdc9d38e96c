/* Device memory: only accounted for. Addresses come from one big PROT_NONE reservation, so a stray host access to "device memory" faults. */
#include "device.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define ADDRESS_RANGE ((size_t)16 << 40) /* addresses are never reused: 16 TiB last for weeks of training steps */
#define HOST_PAGE ((size_t)4096)

typedef struct {
  uintptr_t address;
  size_t bytes;
} block_t;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct {
  uintptr_t base, next, end;
  int downwards; /* each allocation below the last, as drivers do; FAKECUDA_ADDRESSES=up: above it */
  block_t *blocks; /* live cudaMalloc blocks, in no order: torch has few, it caches */
  size_t num_blocks, max_blocks;
  size_t used_bytes, peak_bytes;
} mem;

size_t device_used_bytes(void) { return mem.used_bytes; }
size_t device_peak_bytes(void) { return mem.peak_bytes; }

int is_device_address(const void *p) { return mem.base && (uintptr_t)p >= mem.base && (uintptr_t)p < mem.end; }

/* ---- addresses and the charge; the lock is held in these */

static void reserve_addresses(void) {
  void *p = mmap(NULL, ADDRESS_RANGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) {
    perror("fakecuda: address range");
    abort();
  }
  mem.base = ROUND_UP((uintptr_t)p, DEVICE_PAGE);
  mem.next = mem.base + DEVICE_PAGE; /* the first page stands for the context: device_base() */
  mem.end = (uintptr_t)p + ADDRESS_RANGE;
  const char *order = getenv("FAKECUDA_ADDRESSES");
  mem.downwards = !order || strcmp(order, "up") != 0;
  if (mem.downwards) mem.next = mem.end / DEVICE_PAGE * DEVICE_PAGE;
}

static uintptr_t take_addresses(size_t bytes, size_t alignment) { /* 0: exhausted */
  if (!mem.base) reserve_addresses();
  if (alignment < DEVICE_PAGE) alignment = DEVICE_PAGE;
  if (mem.downwards) {
    if (bytes > mem.next - mem.base - DEVICE_PAGE) return 0;
    return mem.next = (mem.next - ROUND_UP(bytes, DEVICE_PAGE)) / alignment * alignment;
  }
  uintptr_t address = ROUND_UP(mem.next, alignment);
  if (address + bytes > mem.end) return 0;
  mem.next = address + ROUND_UP(bytes, DEVICE_PAGE);
  return address;
}

static int charge(size_t bytes) { /* 0: does not fit beside the context */
  const device_t *dev = device();
  if (dev->context_bytes + mem.used_bytes + bytes > dev->total_bytes) return 0;
  mem.used_bytes += bytes;
  if (mem.used_bytes > mem.peak_bytes) mem.peak_bytes = mem.used_bytes;
  tell_used(mem.used_bytes);
  return 1;
}

static void remember(uintptr_t address, size_t bytes) {
  if (mem.num_blocks == mem.max_blocks) {
    mem.max_blocks = mem.max_blocks ? 2 * mem.max_blocks : 256;
    mem.blocks = realloc(mem.blocks, mem.max_blocks * sizeof *mem.blocks);
  }
  mem.blocks[mem.num_blocks++] = (block_t){address, bytes};
}

uintptr_t device_base(void) {
  pthread_mutex_lock(&lock);
  if (!mem.base) reserve_addresses();
  pthread_mutex_unlock(&lock);
  return mem.base;
}

/* ---- cudaMalloc, cudaFree */

static cudaError_t device_malloc(void **out, size_t bytes) {
  cudaError_t e = cudaErrorMemoryAllocation;
  *out = NULL;
  if (!bytes) return cudaSuccess;
  bytes = ROUND_UP(bytes, DEVICE_PAGE);
  pthread_mutex_lock(&lock);
  if (charge(bytes)) {
    uintptr_t address = take_addresses(bytes, DEVICE_PAGE);
    if (address) {
      remember(address, bytes);
      *out = (void *)address;
      e = cudaSuccess;
    } else
      mem.used_bytes -= bytes;
  }
  if (device()->trace > 1)
    fprintf(stderr, "fakecuda: malloc %zu MiB -> %p, used %zu MiB\n", bytes / MIB, *out, mem.used_bytes / MIB);
  pthread_mutex_unlock(&lock);
  return set_last_error(e);
}

static cudaError_t device_free(void *p) {
  cudaError_t e = cudaErrorInvalidValue;
  if (!p) return cudaSuccess;
  pthread_mutex_lock(&lock);
  for (size_t i = mem.num_blocks; i-- > 0;)
    if (mem.blocks[i].address == (uintptr_t)p) {
      mem.used_bytes -= mem.blocks[i].bytes;
      if (device()->trace > 1)
        fprintf(stderr, "fakecuda: free %zu MiB, used %zu MiB\n", mem.blocks[i].bytes / MIB, mem.used_bytes / MIB);
      mem.blocks[i] = mem.blocks[--mem.num_blocks];
      tell_used(mem.used_bytes);
      e = cudaSuccess;
      break;
    }
  pthread_mutex_unlock(&lock);
  return set_last_error(e);
}

EXPORT cudaError_t cudaMalloc(void **p, size_t n) { return device_malloc(p, n); }
EXPORT cudaError_t cudaFree(void *p) { return device_free(p); }
EXPORT cudaError_t cudaMallocAsync(void **p, size_t n, cudaStream_t s) { (void)s; return device_malloc(p, n); }
EXPORT cudaError_t cudaFreeAsync(void *p, cudaStream_t s) { (void)s; return device_free(p); }

EXPORT cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
  const device_t *dev = device();
  size_t taken = dev->context_bytes + mem.used_bytes;
  *total_bytes = dev->total_bytes;
  *free_bytes = dev->total_bytes > taken ? dev->total_bytes - taken : 0;
  return cudaSuccess;
}
EXPORT CUresult cuMemGetInfo(size_t *f, size_t *t) { return (CUresult)cudaMemGetInfo(f, t); }
EXPORT cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int d) {
  (void)d;
  *pool = (cudaMemPool_t)&mem;
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr name, void *value) {
  (void)pool;
  int high = name == cudaMemPoolAttrReservedMemHigh || name == cudaMemPoolAttrUsedMemHigh;
  *(uint64_t *)value = high ? mem.peak_bytes : mem.used_bytes;
  return cudaSuccess;
}

/* ---- virtual memory management: what torch's expandable_segments:True is built on. Mapping itself is a stub: it costs nothing. */

typedef struct {
  size_t bytes;
} physical_t;

EXPORT CUresult cuMemGetAllocationGranularity(size_t *bytes, const CUmemAllocationProp *p, CUmemAllocationGranularity_flags o) {
  (void)p, (void)o;
  *bytes = DEVICE_PAGE;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t bytes, const CUmemAllocationProp *p, unsigned long long f) {
  (void)p, (void)f;
  bytes = ROUND_UP(bytes, DEVICE_PAGE);
  pthread_mutex_lock(&lock);
  int fits = charge(bytes);
  pthread_mutex_unlock(&lock);
  if (!fits) return CUDA_ERROR_OUT_OF_MEMORY;
  physical_t *physical = malloc(sizeof *physical);
  physical->bytes = bytes;
  *handle = (CUmemGenericAllocationHandle)(uintptr_t)physical;
  return CUDA_SUCCESS;
}
EXPORT CUresult cuMemRelease(CUmemGenericAllocationHandle handle) { /* torch unmaps first */
  physical_t *physical = (physical_t *)(uintptr_t)handle;
  pthread_mutex_lock(&lock);
  mem.used_bytes -= physical->bytes;
  tell_used(mem.used_bytes);
  pthread_mutex_unlock(&lock);
  free(physical);
  return CUDA_SUCCESS;
}
EXPORT CUresult cuMemAddressReserve(CUdeviceptr *p, size_t bytes, size_t alignment, CUdeviceptr hint, unsigned long long f) {
  (void)hint, (void)f;
  pthread_mutex_lock(&lock);
  *p = (CUdeviceptr)take_addresses(bytes, alignment);
  pthread_mutex_unlock(&lock);
  return *p ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

/* ---- host memory the runtime hands out: mmap, so that pages nobody touches cost nothing; the size is kept in a page before it */

EXPORT cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned flags) {
  (void)flags;
  char *header = mmap(NULL, bytes + HOST_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (header == MAP_FAILED) return set_last_error(cudaErrorMemoryAllocation);
  *(size_t *)header = bytes + HOST_PAGE;
  *p = header + HOST_PAGE;
  return cudaSuccess;
}
EXPORT cudaError_t cudaMallocHost(void **p, size_t bytes) { return cudaHostAlloc(p, bytes, 0); }
EXPORT cudaError_t cudaMallocManaged(void **p, size_t bytes, unsigned flags) {
  return cudaHostAlloc(p, bytes, flags); /* bitsandbytes' paged optimizers: not counted as device memory */
}
EXPORT cudaError_t cudaFreeHost(void *p) {
  if (!p) return cudaSuccess;
  char *header = (char *)p - HOST_PAGE;
  munmap(header, *(size_t *)header);
  return cudaSuccess;
}

/* ---- copies: host to host is real, to the device nothing, from the device zeros */

/* Zero host memory; whole pages are dropped rather than written, so that .to("cpu") of a 24 GB model costs no RAM. */
static void zero_host(void *p, size_t bytes) {
  uintptr_t start = (uintptr_t)p, first = ROUND_UP(start, HOST_PAGE), last = (start + bytes) & ~(HOST_PAGE - 1);
  if (bytes >= MIB && !madvise((void *)first, last - first, MADV_DONTNEED)) {
    memset(p, 0, first - start);
    memset((void *)last, 0, start + bytes - last);
  } else
    memset(p, 0, bytes);
}

static cudaError_t copy(void *to, const void *from, size_t bytes) {
  if (!bytes || is_device_address(to)) return cudaSuccess;
  if (is_device_address(from)) zero_host(to, bytes);
  else memmove(to, from, bytes);
  return cudaSuccess;
}

EXPORT cudaError_t cudaMemcpy(void *d, const void *s, size_t n, enum cudaMemcpyKind k) { (void)k; return copy(d, s, n); }
EXPORT cudaError_t cudaMemcpyAsync(void *d, const void *s, size_t n, enum cudaMemcpyKind k, cudaStream_t stream) {
  (void)k, (void)stream;
  return copy(d, s, n);
}
EXPORT cudaError_t cudaMemcpyPeerAsync(void *d, int to, const void *s, int from, size_t n, cudaStream_t stream) {
  (void)to, (void)from, (void)stream;
  return copy(d, s, n);
}
EXPORT cudaError_t cudaMemcpy2DAsync(void *d, size_t d_pitch, const void *s, size_t s_pitch, size_t width, size_t height,
                                     enum cudaMemcpyKind k, cudaStream_t stream) {
  (void)k, (void)stream;
  for (size_t row = 0; row < height; row++) copy((char *)d + row * d_pitch, (const char *)s + row * s_pitch, width);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemset(void *p, int value, size_t n) {
  if (!is_device_address(p)) memset(p, value, n);
  return cudaSuccess;
}
EXPORT cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t s) { (void)s; return cudaMemset(p, value, n); }

/* ---- whose address is it */

EXPORT cudaError_t cudaPointerGetAttributes(struct cudaPointerAttributes *a, const void *p) {
  int on_device = is_device_address(p);
  memset(a, 0, sizeof *a);
  a->type = on_device ? cudaMemoryTypeDevice : cudaMemoryTypeUnregistered;
  a->device = on_device ? 0 : -2;
  a->devicePointer = on_device ? (void *)p : NULL;
  a->hostPointer = on_device ? NULL : (void *)p;
  return cudaSuccess;
}
EXPORT CUresult cuPointerGetAttribute(void *data, CUpointer_attribute name, CUdeviceptr p) {
  switch (name) {
  case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
    *(unsigned *)data = is_device_address((void *)p) ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
    return CUDA_SUCCESS;
  case CU_POINTER_ATTRIBUTE_DEVICE_POINTER:
  case CU_POINTER_ATTRIBUTE_HOST_POINTER: *(CUdeviceptr *)data = p; return CUDA_SUCCESS;
  case CU_POINTER_ATTRIBUTE_BUFFER_ID: *(unsigned long long *)data = 1; return CUDA_SUCCESS;
  default: *(int *)data = 0; return CUDA_SUCCESS;
  }
}

/* ---- for device.py */

EXPORT size_t fakecuda_used(void) { return mem.used_bytes; }
EXPORT size_t fakecuda_peak(void) { return mem.peak_bytes; }
EXPORT void fakecuda_reset_peak(void) { mem.peak_bytes = mem.used_bytes; }
