/* NVML, nvidia-smi's source: used = context + device allocations of this process; with FAKECUDA_SHARED=FILE of every process that has
 * the same file, as on a card that several use. Statuses are ints here: the wheels bring no nvml.h. */
#include "device.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { NVML_SUCCESS = 0, NVML_ERROR_NOT_SUPPORTED = 3, NVML_ERROR_INSUFFICIENT_SIZE = 7 };

/* ---- processes on the card: slots of a shared file, each written by its owner alone; a dead owner's slot is free */

#define SLOTS 64
typedef struct {
  int pid;
  unsigned long long bytes;
} slot_t;

static slot_t *slots(void) {
  static slot_t *shared;
  static int tried;
  if (tried) return shared;
  tried = 1;
  const char *path = getenv("FAKECUDA_SHARED");
  if (!path || !*path) return NULL;
  int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd >= 0 && !ftruncate(fd, SLOTS * sizeof *shared)) {
    void *p = mmap(NULL, SLOTS * sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p != MAP_FAILED) shared = p;
  }
  if (fd >= 0) close(fd);
  return shared;
}

static int alive(int pid) { return pid > 0 && (!kill(pid, 0) || errno == EPERM); }

void tell_used(size_t bytes) { /* called at every change of what this process has */
  slot_t *all = slots();
  if (!all) return;
  static slot_t *own;
  int me = getpid();
  for (int i = 0; i < SLOTS && (!own || own->pid != me); i++) { /* also after a fork */
    int before = all[i].pid;
    if (!alive(before) && __sync_bool_compare_and_swap(&all[i].pid, before, me)) own = &all[i];
  }
  if (own) own->bytes = device()->context_bytes + bytes;
}

typedef struct {
  unsigned pid;
  unsigned long long used;
} process_t; /* nvmlProcessInfo_v1_t */
typedef struct {
  unsigned long long total, free, used;
} memory_t; /* nvmlMemory_t */

static void *the_handle(void) { return (void *)device(); }
static unsigned long long used_bytes(void) {
  slot_t *all = slots();
  if (!all) return device()->context_bytes + device_used_bytes();
  unsigned long long sum = 0;
  for (int i = 0; i < SLOTS; i++)
    if (alive(all[i].pid)) sum += all[i].bytes;
  return sum;
}

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
typedef struct {
  unsigned version;
  unsigned long long total, reserved, free, used;
} memory_v2_t; /* nvmlMemory_v2_t */
EXPORT int nvmlDeviceGetMemoryInfo_v2(void *h, memory_v2_t *m) {
  memory_t plain;
  nvmlDeviceGetMemoryInfo(h, &plain);
  m->total = plain.total, m->reserved = 0, m->free = plain.free, m->used = plain.used;
  return NVML_SUCCESS;
}
EXPORT int nvmlDeviceGetName(void *h, char *text, unsigned size) {
  (void)h;
  snprintf(text, size, "%s", device()->name);
  return NVML_SUCCESS;
}
EXPORT int nvmlSystemGetDriverVersion(char *text, unsigned size) {
  snprintf(text, size, "emulated");
  return NVML_SUCCESS;
}

/* The list of processes, in either version's layout. */
static int list_processes(unsigned *room, void *out, size_t stride) {
  slot_t *all = slots(), own = {getpid(), used_bytes()};
  unsigned count = 0, most = *room;
  for (int i = 0; i < (all ? SLOTS : 1); i++) {
    slot_t *one = all ? &all[i] : &own;
    if (!alive(one->pid)) continue;
    if (out && count < most) {
      process_t *to = (process_t *)((char *)out + count * stride);
      to->pid = (unsigned)one->pid, to->used = one->bytes;
    }
    count++;
  }
  *room = count;
  return count && (!out || count > most) ? NVML_ERROR_INSUFFICIENT_SIZE : NVML_SUCCESS;
}
typedef struct {
  process_t process;
  unsigned instance, compute;
} process_v3_t; /* nvmlProcessInfo_t */
EXPORT int nvmlDeviceGetComputeRunningProcesses(void *h, unsigned *n, process_t *p) {
  (void)h;
  return list_processes(n, p, sizeof *p);
}
EXPORT int nvmlDeviceGetComputeRunningProcesses_v3(void *h, unsigned *n, process_v3_t *p) {
  (void)h;
  return list_processes(n, p, sizeof *p);
}
