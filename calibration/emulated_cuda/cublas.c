/* cuBLAS and cuBLASLt: handles exist, matrix products are no-ops (stubs.c). torch's workspaces are torch's own.
 * Statuses and enums are ints here; 0 is success, default math mode, host pointers. */
#include "device.h"

#include <stdlib.h>
#include <string.h>

EXPORT int cublasCreate_v2(void **h) { return new_handle(h); }
EXPORT int cublasDestroy_v2(void *h) { free(h); return 0; }
EXPORT int cublasGetMathMode(void *h, int *m) { (void)h; *m = 0; return 0; }
EXPORT int cublasGetPointerMode_v2(void *h, int *m) { (void)h; *m = 0; return 0; }

EXPORT int cublasLtCreate(void **h) { return new_handle(h); }
EXPORT int cublasLtMatmulDescCreate(void **d, int c, int s) { (void)c, (void)s; return new_handle(d); }
EXPORT int cublasLtMatmulDescDestroy(void *d) { free(d); return 0; }
EXPORT int cublasLtMatrixLayoutCreate(void **l, int type, uint64_t rows, uint64_t columns, int64_t ld) {
  (void)type, (void)rows, (void)columns, (void)ld;
  return new_handle(l);
}
EXPORT int cublasLtMatrixLayoutDestroy(void *l) { free(l); return 0; }
EXPORT int cublasLtMatmulPreferenceCreate(void **p) { return new_handle(p); }
EXPORT int cublasLtMatmulPreferenceDestroy(void *p) { free(p); return 0; }

typedef struct { /* cublasLtMatmulHeuristicResult_t */
  uint64_t algo[8];
  size_t workspace;
  int state;
  float waves;
  int reserved[4];
} heuristic_t;

/* One algorithm that needs no workspace: torch allocates its own fixed maximum whatever the algorithm asks for. */
EXPORT int cublasLtMatmulAlgoGetHeuristic(void *h, void *desc, void *a, void *b, void *c, void *d, void *preference, int wanted,
                                          heuristic_t *results, int *found) {
  (void)h, (void)desc, (void)a, (void)b, (void)c, (void)d, (void)preference;
  *found = wanted > 0;
  if (wanted > 0) {
    memset(results, 0, sizeof *results);
    results->waves = 1.0f;
  }
  return 0;
}
