/* The rest of the CUDA runtime: errors, streams, events, symbols. Everything is complete as soon as it is asked for. */
#include "device.h"

#include <stdlib.h>

int new_handle(void *p) {
  *(void **)p = calloc(1, 64); /* opaque to the caller; 64 zero bytes so that a peek inside is harmless */
  return 0;
}

/* ---- errors */

static __thread cudaError_t last_error;

cudaError_t set_last_error(cudaError_t e) {
  if (e) last_error = e;
  return e;
}
EXPORT cudaError_t cudaGetLastError(void) {
  cudaError_t e = last_error;
  last_error = cudaSuccess;
  return e;
}
EXPORT cudaError_t cudaPeekAtLastError(void) { return last_error; }
EXPORT const char *cudaGetErrorString(cudaError_t e) {
  switch ((int)e) {
  case cudaSuccess: return "no error";
  case cudaErrorInvalidValue: return "invalid argument";
  case cudaErrorMemoryAllocation: return "out of memory";
  case cudaErrorNotSupported: return "operation not supported";
  default: return "fakecuda error";
  }
}
EXPORT const char *cudaGetErrorName(cudaError_t e) {
  switch ((int)e) {
  case cudaSuccess: return "cudaSuccess";
  case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
  case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
  case cudaErrorNotSupported: return "cudaErrorNotSupported";
  default: return "cudaErrorFake";
  }
}

/* ---- streams; graph capture is refused */

EXPORT cudaError_t cudaStreamCreate(cudaStream_t *s) { return new_handle(s); }
EXPORT cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned f) { (void)f; return new_handle(s); }
EXPORT cudaError_t cudaStreamCreateWithPriority(cudaStream_t *s, unsigned f, int p) { (void)f, (void)p; return new_handle(s); }
EXPORT cudaError_t cudaStreamDestroy(cudaStream_t s) { (void)s; return cudaSuccess; } /* kept: torch pools its streams */
EXPORT cudaError_t cudaStreamGetPriority(cudaStream_t s, int *p) { (void)s; *p = 0; return cudaSuccess; }
EXPORT cudaError_t cudaStreamIsCapturing(cudaStream_t s, enum cudaStreamCaptureStatus *status) {
  (void)s;
  *status = cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamGetCaptureInfo(cudaStream_t s, enum cudaStreamCaptureStatus *status, unsigned long long *id,
                                            cudaGraph_t *graph, const cudaGraphNode_t **dependencies,
                                            const cudaGraphEdgeData **edges, size_t *n) {
  (void)s, (void)graph, (void)dependencies, (void)edges;
  *status = cudaStreamCaptureStatusNone;
  if (id) *id = 0;
  if (n) *n = 0;
  return cudaSuccess;
}
EXPORT cudaError_t cudaStreamBeginCapture(cudaStream_t s, enum cudaStreamCaptureMode m) {
  (void)s, (void)m;
  return set_last_error(cudaErrorNotSupported);
}
EXPORT cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t f, void *user, unsigned flags) {
  (void)flags;
  f(s, cudaSuccess, user);
  return cudaSuccess;
}
EXPORT cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t f, void *user) {
  (void)s;
  f(user);
  return cudaSuccess;
}

/* ---- events */

EXPORT cudaError_t cudaEventCreate(cudaEvent_t *e) { return new_handle(e); }
EXPORT cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned f) { (void)f; return new_handle(e); }
EXPORT cudaError_t cudaEventDestroy(cudaEvent_t e) { free(e); return cudaSuccess; }
EXPORT cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t a, cudaEvent_t b) {
  (void)a, (void)b;
  *ms = 1.0f;
  return cudaSuccess;
}

/* ---- symbols */

EXPORT cudaError_t cudaGetSymbolAddress(void **p, const void *symbol) {
  (void)symbol;
  *p = (void *)device_base(); /* never dereferenced on the host */
  return cudaSuccess;
}
