/* The allocator's replay, compiled: the same as Allocator.run of allocator.py, which says what it does and why, and stays the reference
 * (tests/test_allocator_compiled.py holds the two together). For default settings: no expandable segments, no placed segments.
 *
 * Blocks are chained to their neighbours within a segment, as in torch, and free ones to those of about their size, sorted by (size, address):
 * one comes and goes without a search among all. Sizes and addresses are in units. No Python here: the library is loaded with ctypes and serves every version of it. */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

typedef int64_t i64;

enum { FREE = -1, EMPTY_CACHE = -2, NOTHING = -3 };                                            /* in sizes: as in allocator.py */
enum { DONE, OUT_OF_MEMORY, KEY_IS_LIVE, KEY_HOLDS_NOTHING, UNKNOWN_SIZE, NO_HOST_MEMORY };    /* results: as in allocator_compiled.py */
enum { NONE = -1, VACANT = -2 };                                                               /* in place of a block's number */

/* Read and set by allocator_compiled.Counters: the same fields in the same order. */
typedef struct {
    i64 unit_bytes, small_request, small_segment, min_large, large_segment, round_large; /* constants of allocator_state.py */
    i64 downwards;                                                                       /* 1: new segments lie below the others */
    i64 capacity;                                                                        /* negative: unbounded */
    i64 next_address, allocated, peak_allocated, reserved, peak_reserved, retries;
    i64 event, peak_event, requested; /* of the last run: where it stopped, where its peak was (or -1), the request that failed */
} Counters;

enum { STREAMS = 2 }; /* each with pools of its own; blocks and segments stay with their stream: as in allocator_compiled.py */

typedef struct {
    i64 size, address;
    int32_t before, after;       /* neighbours in the segment */
    int32_t smaller, larger;     /* if it is free: the next in its chain */
    int32_t is_free, stream;
} Block;

enum { FINE = 4, CHAINS = 44 << FINE, WORDS = CHAINS / 64 }; /* sizes that share their highest FINE + 1 bits share a chain */
typedef struct {
    int32_t first[CHAINS];       /* the smallest block of each chain, or NONE */
    uint64_t words[WORDS], word; /* which chains are not empty, and which of those words are not 0 */
} Pool;
typedef struct { i64 key; int32_t block; } Held; /* block: its number; NONE: the null pointer; VACANT: no key here */

typedef struct {
    Counters counters;
    Block *blocks;
    i64 blocks_count, blocks_room;
    int32_t unused; /* chain of unused blocks, through `after` */
    Pool small[STREAMS], large[STREAMS];
    Held *held; /* open addressing, linear probing; held_room is a power of two, at most half full */
    i64 held_count, held_room;
    int unit_shift; /* of unit_bytes, a power of two: a division takes as long as all else of a small event */
} Core;

/* ---- keys */

static i64 home_of(const Core *core, i64 key) {
    return (i64)(((uint64_t)key * 0x9E3779B97F4A7C15u) >> 20) & (core->held_room - 1);
}

static i64 slot_of(const Core *core, i64 key) {
    i64 mask = core->held_room - 1, at = home_of(core, key);
    while (core->held[at].block != VACANT && core->held[at].key != key) at = (at + 1) & mask;
    return at;
}

static int make_room_for_key(Core *core) {
    if (2 * (core->held_count + 1) <= core->held_room) return 1;
    Held *old = core->held;
    i64 old_room = core->held_room, room = old_room ? 2 * old_room : 1024;
    Held *held = malloc(room * sizeof *held);
    if (!held) return 0;
    for (i64 i = 0; i < room; i++) held[i].block = VACANT;
    core->held = held;
    core->held_room = room;
    for (i64 i = 0; i < old_room; i++)
        if (old[i].block != VACANT) held[slot_of(core, old[i].key)] = old[i];
    free(old);
    return 1;
}

static void forget_key(Core *core, i64 at) {
    i64 mask = core->held_room - 1, hole = at;
    core->held_count--;
    for (i64 i = (at + 1) & mask; core->held[i].block != VACANT; i = (i + 1) & mask) { /* close the gap: no tombstones */
        i64 home = home_of(core, core->held[i].key);
        if (((i - home) & mask) >= ((i - hole) & mask)) {
            core->held[hole] = core->held[i];
            hole = i;
        }
    }
    core->held[hole].block = VACANT;
}

/* ---- blocks and pools */

static int32_t new_block(Core *core) {
    if (core->unused != NONE) {
        int32_t block = core->unused;
        core->unused = core->blocks[block].after;
        return block;
    }
    if (core->blocks_count == core->blocks_room) {
        i64 room = core->blocks_room ? 2 * core->blocks_room : 1024;
        Block *blocks = realloc(core->blocks, room * sizeof *blocks);
        if (!blocks) return NONE;
        core->blocks = blocks;
        core->blocks_room = room;
    }
    return (int32_t)core->blocks_count++;
}

static void drop_block(Core *core, int32_t block) {
    core->blocks[block].after = core->unused;
    core->unused = block;
}

/* The chain of a size. The last one has all sizes from 2**47 units (64 PiB) on. */
static i64 chain_of(i64 size) {
    if (size < (1 << FINE)) return size;
    int shift = 63 - __builtin_clzll((uint64_t)size) - FINE;
    i64 chain = ((i64)shift << FINE) + (size >> shift);
    return chain < CHAINS ? chain : CHAINS - 1;
}

static int precedes(const Block *one, const Block *other) {
    return one->size < other->size || (one->size == other->size && one->address < other->address);
}

static void enter(Core *core, Pool *pool, int32_t block) {
    Block *blocks = core->blocks, *b = &blocks[block];
    i64 chain = chain_of(b->size);
    int32_t larger = pool->first[chain], smaller = NONE;
    while (larger != NONE && precedes(&blocks[larger], b)) {
        smaller = larger;
        larger = blocks[larger].larger;
    }
    b->smaller = smaller;
    b->larger = larger;
    b->is_free = 1;
    if (smaller != NONE) blocks[smaller].larger = block;
    else pool->first[chain] = block;
    if (larger != NONE) blocks[larger].smaller = block;
    pool->words[chain / 64] |= (uint64_t)1 << chain % 64;
    pool->word |= (uint64_t)1 << chain / 64;
}

static void take_out(Core *core, Pool *pool, int32_t block) {
    Block *blocks = core->blocks, *b = &blocks[block];
    i64 chain = chain_of(b->size);
    b->is_free = 0;
    if (b->smaller != NONE) blocks[b->smaller].larger = b->larger;
    else pool->first[chain] = b->larger;
    if (b->larger != NONE) blocks[b->larger].smaller = b->smaller;
    if (pool->first[chain] != NONE) return;
    pool->words[chain / 64] &= ~((uint64_t)1 << chain % 64);
    if (!pool->words[chain / 64]) pool->word &= ~((uint64_t)1 << chain / 64);
}

/* The first chain from one on that is not empty; CHAINS if there is none. */
static i64 next_chain(const Pool *pool, i64 chain) {
    if (chain >= CHAINS) return CHAINS;
    uint64_t word = pool->words[chain / 64] >> chain % 64;
    if (word) return chain + __builtin_ctzll(word);
    uint64_t words = pool->word >> (chain / 64 + 1) << (chain / 64 + 1);
    if (!words) return CHAINS;
    i64 place = __builtin_ctzll(words);
    return place * 64 + __builtin_ctzll(pool->words[place]);
}

/* The smallest free block of so many units or more, of those the one at the lowest address; NONE if there is none. */
static int32_t best_fit(const Core *core, const Pool *pool, i64 units) {
    i64 chain = chain_of(units);
    int32_t block = pool->first[chain];
    while (block != NONE && core->blocks[block].size < units) block = core->blocks[block].larger;
    if (block != NONE) return block;
    chain = next_chain(pool, chain + 1);
    return chain < CHAINS ? pool->first[chain] : NONE;
}

static Pool *pool_of(Core *core, i64 units, int32_t stream) {
    return units <= core->counters.small_request ? &core->small[stream] : &core->large[stream];
}

/* ---- segments */

static void release_pool(Core *core, Pool *pool) {
    for (i64 chain = next_chain(pool, 0); chain < CHAINS; chain = next_chain(pool, chain + 1)) {
        for (int32_t block = pool->first[chain], larger; block != NONE; block = larger) {
            Block *b = &core->blocks[block];
            larger = b->larger;
            if (b->before != NONE || b->after != NONE) continue;
            core->counters.reserved -= b->size;
            take_out(core, pool, block);
            drop_block(core, block);
        }
    }
}

static void release(Core *core) {
    for (int stream = 0; stream < STREAMS; stream++) {
        release_pool(core, &core->large[stream]);
        release_pool(core, &core->small[stream]);
    }
}

/* A new segment as one free block outside its pool; NONE: cudaMalloc fails; VACANT: no host memory. */
static int32_t grow(Core *core, i64 units, int32_t stream) {
    Counters *c = &core->counters;
    i64 size = units <= c->small_request ? c->small_segment
             : units < c->min_large      ? c->large_segment
                                         : (units + c->round_large - 1) / c->round_large * c->round_large;
    if (c->capacity >= 0 && c->reserved + size > c->capacity) return NONE;
    int32_t block = new_block(core);
    if (block == NONE) return VACANT;
    if (c->downwards) c->next_address -= size;
    core->blocks[block] = (Block){size, c->next_address, NONE, NONE, NONE, NONE, 0, stream};
    if (!c->downwards) c->next_address += size;
    c->reserved += size;
    if (c->reserved > c->peak_reserved) c->peak_reserved = c->reserved;
    return block;
}

/* ---- events */

/* `at`: where the key is to be held. */
static int allocate(Core *core, i64 key, i64 at, i64 units, i64 event, int32_t stream) {
    Counters *c = &core->counters;
    Pool *pool = pool_of(core, units, stream);
    int32_t block = best_fit(core, pool, units);
    if (block != NONE) {
        take_out(core, pool, block);
    } else {
        block = grow(core, units, stream);
        if (block == NONE) {
            release(core);
            c->retries++;
            block = grow(core, units, stream);
        }
        if (block == NONE) {
            c->requested = units;
            return OUT_OF_MEMORY;
        }
        if (block == VACANT) return NO_HOST_MEMORY;
    }
    i64 rest = core->blocks[block].size - units;
    if (rest >= (pool == &core->small[stream] ? 1 : c->small_request + 1)) {
        int32_t remainder = new_block(core);
        if (remainder == NONE) return NO_HOST_MEMORY;
        Block *b = &core->blocks[block];
        core->blocks[remainder] = (Block){rest, b->address + units, block, b->after, NONE, NONE, 1, stream};
        if (b->after != NONE) core->blocks[b->after].before = remainder;
        b->after = remainder;
        b->size = units;
        enter(core, pool, remainder);
    }
    c->allocated += core->blocks[block].size;
    if (c->allocated > c->peak_allocated) {
        c->peak_allocated = c->allocated;
        c->peak_event = event;
    }
    core->held[at] = (Held){key, block};
    core->held_count++;
    return DONE;
}

static void give_back(Core *core, int32_t block) {
    Block *b = &core->blocks[block];
    Pool *pool = pool_of(core, b->size, b->stream);
    core->counters.allocated -= b->size;
    if (b->after != NONE && core->blocks[b->after].is_free) {
        int32_t gone = b->after;
        take_out(core, pool, gone);
        b->size += core->blocks[gone].size;
        b->after = core->blocks[gone].after;
        if (b->after != NONE) core->blocks[b->after].before = block;
        drop_block(core, gone);
    }
    if (b->before != NONE && core->blocks[b->before].is_free) {
        int32_t first = b->before;
        take_out(core, pool, first);
        core->blocks[first].size += b->size;
        core->blocks[first].after = b->after;
        if (b->after != NONE) core->blocks[b->after].before = first;
        drop_block(core, block);
        block = first;
    }
    enter(core, pool, block);
}

static int one(Core *core, i64 key, i64 size, i64 event, int32_t stream) {
    if (size == EMPTY_CACHE) {
        release(core);
        return DONE;
    }
    if (size == NOTHING) return DONE;
    if (size < FREE) return UNKNOWN_SIZE;
    if (!make_room_for_key(core)) return NO_HOST_MEMORY;
    i64 at = slot_of(core, key);
    int32_t block = core->held[at].block;
    if (size == FREE) {
        if (block == VACANT) return KEY_HOLDS_NOTHING;
        forget_key(core, at);
        if (block != NONE) give_back(core, block);
        return DONE;
    }
    if (block != VACANT) return KEY_IS_LIVE;
    if (size > 0) return allocate(core, key, at, (size + core->counters.unit_bytes - 1) >> core->unit_shift, event, stream);
    core->held[at] = (Held){key, NONE};
    core->held_count++;
    return DONE;
}

/* ---- what allocator_compiled.py calls */

EXPORT void core_delete(Core *core) {
    if (!core) return;
    free(core->blocks);
    free(core->held);
    free(core);
}

EXPORT Core *core_begin(const Counters *counters) {
    Core *core = calloc(1, sizeof *core);
    if (!core) return NULL;
    core->counters = *counters;
    core->unused = NONE;
    core->unit_shift = __builtin_ctzll((uint64_t)counters->unit_bytes);
    for (int stream = 0; stream < STREAMS; stream++) {
        for (i64 chain = 0; chain < CHAINS; chain++) core->small[stream].first[chain] = core->large[stream].first[chain] = NONE;
    }
    return core;
}

/* `room` bytes, of which the first `used` are those of another. */
static void *duplicate(const void *from, size_t used, size_t room, int *failed) {
    if (!room) return NULL;
    void *to = malloc(room);
    if (to) memcpy(to, from, used);
    else *failed = 1;
    return to;
}

EXPORT Core *core_copy(const Core *core) {
    Core *twin = malloc(sizeof *twin);
    int failed = 0;
    if (!twin) return NULL;
    *twin = *core;
    twin->blocks = duplicate(core->blocks, core->blocks_count * sizeof *core->blocks, core->blocks_room * sizeof *core->blocks, &failed);
    twin->held = duplicate(core->held, core->held_room * sizeof *core->held, core->held_room * sizeof *core->held, &failed);
    if (!failed) return twin;
    core_delete(twin);
    return NULL;
}

EXPORT Counters *core_counters(Core *core) { return &core->counters; }

enum { AHEAD = 16 }; /* events: where a key is held is asked for so early that it has come by then */

/* Events until one fails: the result says how, counters.event which. `streams`: of each block that is allocated; NULL: all on the first. */
EXPORT int core_run_streams(Core *core, const i64 *keys, const i64 *sizes, const i64 *streams, i64 count) {
    core->counters.peak_event = -1;
    for (i64 i = 0; i < count; i++) {
        if (i + AHEAD < count && core->held_room) __builtin_prefetch(&core->held[home_of(core, keys[i + AHEAD])]);
        int result = one(core, keys[i], sizes[i], i, streams ? (int32_t)streams[i] : 0);
        if (result != DONE) {
            core->counters.event = i;
            return result;
        }
    }
    return DONE;
}

/* Which events it knows: a library of an older source is not taken. */
EXPORT i64 core_version(void) { return 2; }

/* Address of a live key's block in units; -1: the null pointer; -2: the key holds nothing. */
EXPORT i64 core_address(const Core *core, i64 key) {
    if (!core->held_room) return VACANT;
    int32_t block = core->held[slot_of(core, key)].block;
    return block >= 0 ? core->blocks[block].address : block;
}
