/* cuDNN's graph API. A descriptor remembers what was set; what is asked for and was never set is answered with
 * "one engine, no knobs, workspace by FAKECUDA_CUDNN_WS". Statuses are ints here; 0 is success. */
#include "device.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* numbers of cudnn_graph.h (cuDNN 9), named by what they are used for here */
enum { /* cudnnBackendAttributeName_t */
  HEUR_GRAPH = 201, HEUR_RESULTS = 202, PLAN_CONFIG = 401, PLAN_WORKSPACE = 402,
  CONV_FIRST = 700, CONV_LAST = 717, GRAPH_OPS = 801, GRAPH_ENGINES = 802,
  TENSOR_TYPE = 901, TENSOR_DIMS = 902, TENSOR_STRIDES = 903,
  ENGINE_KNOBS = 1302, ENGINE_NUMERICS = 1303, ENGINE_BEHAVIOUR = 1305
};
enum { /* cudnnBackendAttributeType_t */
  TYPE_HANDLE = 0, TYPE_BOOLEAN = 2, TYPE_INT64 = 3, TYPE_DOUBLE = 5, TYPE_VOID_PTR = 6,
  TYPE_DESCRIPTOR = 15, TYPE_CHAR = 24, TYPE_FRACTION = 26
};
enum { DATA_HALF = 2, DATA_BF16 = 9 }; /* cudnnDataType_t */

typedef struct attribute {
  int name, type;
  int64_t count;
  void *data;
  struct attribute *next;
} attribute_t;

typedef struct {
  int type, references;
  attribute_t *attributes;
  int64_t workspace; /* of an engine configuration or plan, bytes */
} descriptor_t;

static size_t type_bytes(int type) {
  switch (type) {
  case TYPE_HANDLE: case TYPE_INT64: case TYPE_DOUBLE: case TYPE_VOID_PTR: case TYPE_DESCRIPTOR: return 8;
  case TYPE_BOOLEAN: case TYPE_CHAR: return 1;
  case TYPE_FRACTION: return 16;
  default: return 4;
  }
}

static attribute_t *find(descriptor_t *d, int name) {
  attribute_t *a = d->attributes;
  while (a && a->name != name) a = a->next;
  return a;
}

/* ---- lifetime: a descriptor keeps those that were set in it, as cuDNN does */

static void release(descriptor_t *d);

static void release_targets(attribute_t *a) {
  if (a->type == TYPE_DESCRIPTOR)
    for (int64_t i = 0; i < a->count; i++) release(((descriptor_t **)a->data)[i]);
}
static void release(descriptor_t *d) {
  if (!d || --d->references > 0) return;
  for (attribute_t *a = d->attributes, *next; a; a = next) {
    next = a->next;
    release_targets(a);
    free(a->data);
    free(a);
  }
  free(d);
}
EXPORT int cudnnBackendCreateDescriptor(int type, void **d) {
  descriptor_t *new = calloc(1, sizeof *new);
  new->type = type;
  new->references = 1;
  *d = new;
  return 0;
}
EXPORT int cudnnBackendDestroyDescriptor(void *d) { release(d); return 0; }

/* ---- FAKECUDA_CUDNN_WS=layout: one channels-last copy of each 16-bit channels-first tensor of a convolution, which is what
 * tensor-core engines need. An estimate: exact to 0.1 MiB for one published batch-1 peak, too much for larger batches (README.md). */

static int64_t layout_copy_bytes(descriptor_t *tensor) {
  attribute_t *type = find(tensor, TENSOR_TYPE), *dims = find(tensor, TENSOR_DIMS), *strides = find(tensor, TENSOR_STRIDES);
  if (!type || !dims || !strides || dims->count < 4) return 0;
  int data_type = *(int *)type->data;
  int64_t *dim = dims->data, *stride = strides->data, bytes = 2;
  if ((data_type != DATA_HALF && data_type != DATA_BF16) || dim[1] <= 1 || stride[1] == 1) return 0;
  for (int64_t i = 0; i < dims->count; i++) bytes *= dim[i];
  return ROUND_UP(bytes, 256);
}
static int64_t graph_workspace(descriptor_t *graph) {
  int64_t sum = 0;
  if (device()->cudnn_ws != CUDNN_WS_LAYOUT) return (int64_t)device()->cudnn_ws;
  attribute_t *ops = find(graph, GRAPH_OPS);
  for (int64_t i = 0; ops && i < ops->count; i++)
    for (attribute_t *a = ((descriptor_t **)ops->data)[i]->attributes; a; a = a->next)
      if (a->name >= CONV_FIRST && a->name <= CONV_LAST && a->type == TYPE_DESCRIPTOR) sum += layout_copy_bytes(*(descriptor_t **)a->data);
  return sum;
}

/* ---- attributes */

EXPORT int cudnnBackendSetAttribute(void *d, int name, int type, int64_t count, const void *p) {
  descriptor_t *self = d;
  descriptor_t *const *targets = p;
  attribute_t *a = find(self, name);
  if (name == PLAN_CONFIG) self->workspace = targets[0]->workspace;
  for (int64_t i = 0; type == TYPE_DESCRIPTOR && i < count; i++)
    if (targets[i]) targets[i]->references++;
  if (a) release_targets(a);
  else {
    a = calloc(1, sizeof *a);
    a->next = self->attributes;
    self->attributes = a;
  }
  size_t bytes = (size_t)count * type_bytes(type);
  a->name = name, a->type = type, a->count = count;
  a->data = realloc(a->data, bytes ? bytes : 1);
  if (bytes && p) memcpy(a->data, p, bytes);
  return 0;
}

static int64_t answer_unset(descriptor_t *self, int name, int type, int64_t wanted, void *p) { /* number of elements answered */
  attribute_t *a;
  switch (name) {
  case HEUR_RESULTS: /* the caller made the engine configurations; it gets one */
    if (p && wanted > 0 && (a = find(self, HEUR_GRAPH)))
      (*(descriptor_t **)p)->workspace = graph_workspace(*(descriptor_t **)a->data);
    return 1;
  case PLAN_WORKSPACE:
    if (p) *(int64_t *)p = self->workspace;
    return 1;
  case GRAPH_ENGINES:
    if (p) *(int64_t *)p = 1;
    return 1;
  case ENGINE_KNOBS: case ENGINE_NUMERICS: case ENGINE_BEHAVIOUR: return 0;
  default:
    if (device()->trace)
      fprintf(stderr, "fakecuda: cudnn attribute %d of descriptor %d, type %d, want %ld\n", name, self->type, type, (long)wanted);
    if (p && wanted > 0 && type != TYPE_DESCRIPTOR) memset(p, 0, (size_t)wanted * type_bytes(type));
    return type == TYPE_INT64 && wanted == 1;
  }
}
EXPORT int cudnnBackendGetAttribute(void *d, int name, int type, int64_t wanted, int64_t *got, void *p) {
  descriptor_t *self = d;
  attribute_t *a = find(self, name);
  int64_t answered;
  if (a) {
    int64_t n = a->count < wanted ? a->count : wanted;
    if (p && n > 0) memcpy(p, a->data, (size_t)n * type_bytes(type));
    answered = a->count;
  } else
    answered = answer_unset(self, name, type, wanted, p);
  if (got) *got = answered;
  return 0;
}

EXPORT int cudnnCreate(void **h) { return new_handle(h); }
EXPORT int cudnnDestroy(void *h) { free(h); return 0; }
EXPORT int cudnnGetStream(void *h, void **s) { (void)h; *s = NULL; return 0; }
EXPORT const char *cudnnGetErrorString(int e) { (void)e; return "fakecuda cuDNN"; }
EXPORT void cudnnGetLastErrorString(char *s, size_t n) { if (n) *s = 0; }
