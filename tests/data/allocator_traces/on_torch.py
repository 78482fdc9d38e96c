"""Run allocator events through torch's own caching allocator. Usage: python on_torch.py EVENTS.json ANSWERS.json

EVENTS: a list of [key, size]: size > 0 malloc, -1 free, -2 empty_cache, -3 reset of the peaks. ANSWERS: the total memory of the device
and, per event, [address or null if out of memory or no malloc, allocated, reserved, their peaks, retries, out-of-memory errors].
"""

import contextlib
import json
import sys

import torch

FREE, EMPTY_CACHE, RESET_PEAKS = -1, -2, -3


def main(events_path, answers_path):
    with open(events_path) as file:
        events = json.load(file)
    torch.cuda.init()
    live = {}
    answers = []
    for key, size in events:
        address = None
        if size > 0:
            with contextlib.suppress(torch.OutOfMemoryError):
                address = live[key] = torch.cuda.caching_allocator_alloc(size)
        elif size == FREE:
            torch.cuda.caching_allocator_delete(live.pop(key))
        elif size == EMPTY_CACHE:
            torch.cuda.empty_cache()
        elif size == RESET_PEAKS:
            torch.cuda.reset_peak_memory_stats()
        else:
            raise ValueError(size)
        stats = torch.cuda.memory_stats_as_nested_dict()
        allocated, reserved = stats["allocated_bytes"]["all"], stats["reserved_bytes"]["all"]
        answers.append(
            [
                address,
                allocated["current"],
                reserved["current"],
                allocated["peak"],
                reserved["peak"],
                stats["num_alloc_retries"],
                stats["num_ooms"],
            ]
        )
    total = torch.cuda.get_device_properties(0).total_memory
    with open(answers_path, "w") as file:
        json.dump({"total_bytes": total, "torch": torch.__version__, "answers": answers}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
