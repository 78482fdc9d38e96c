"""Recorded steps of an optimizer -> its rule (estimator/optimizer_rules.py), exact or refused.

Events are placed by stretch (a loop over the parameters, or what lies between loops), operation and iteration. Tensors that are made
at the same place for each parameter are one slot, whose size must be a whole multiple of one feature of the parameter's shape. The
rule is then expanded for each recorded list of parameters and must give the recording, event for event and byte for byte.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from calibration.extract.optimizer_recordings import Recording, Zone, bursts, by_slot, merged, read, replaced
from calibration.extract.programs import Refused
from estimator import optimizer_rules as rules
from estimator.optimizer_rules import GRADIENT, Shape

Tensor = tuple[str, int]
"""Slot, and the number of the parameter (-1: one for all)."""


class Extractor:
    """One optimizer's rule from recordings of several lists of parameters."""

    def __init__(self, name: str, recordings: dict[str, Recording]) -> None:
        self.name, self.recordings = name, list(recordings.values())
        steps = sorted(int(s) for s in self.recordings[0].stages if s.isdigit())
        self.first, self.second, self.before, self.last = (str(n) for n in (steps[0], steps[1], steps[-2], steps[-1]))
        self.tensor_of: list[dict[int, Tensor]] = [{} for _ in self.recordings]
        element = 2 if name.endswith("+bf16") else 4  # bytes: of the parameters, and so of their gradients
        self.slots: dict[str, dict[str, Any]] = {GRADIENT: {"kind": "each", "size": [["", "elements", element]]}}
        self.found: dict[str, list[tuple[int, Tensor, int]]] = defaultdict(list)  # slot -> (recording, tensor, bytes)

    def rule(self) -> dict[str, Any]:
        for recording, tensors in zip(self.recordings, self.tensor_of, strict=True):
            for stage in recording.stages.values():
                tensors.update({n: (GRADIENT, k) for n, k in stage.gradients.items()})
        for stage, prefix in (("created", "created"), (self.first, "first"), (self.second, "second"), (self.before, "later"),
                              (self.last, "later")):  # fmt: skip
            self._name(stage, prefix)
        self._rename()
        stages = {"created": self._stage("created"), "first": self._stage(self.first), "later": self._stage(self.last)}
        used = {e[1] for stage in stages.values() for stretch in stage for e in stretch["events"]}
        for slot in sorted(used - {GRADIENT}):
            self.slots[slot] = self._slot(slot)
        rule = {"stages": stages, "slots": {s: self.slots[s] for s in sorted(used)}}
        self._check(rule)
        return rule

    # ---- naming

    def _name(self, stage: str, prefix: str) -> None:
        """Slots of what a stage allocates."""
        for number, recording in enumerate(self.recordings):
            for zone in recording.stages[stage].zones:
                born = [t for kind, t in zone.events if kind == "a"]
                base = f"{prefix} {zone.key[0]} {zone.key[1]}"
                numbers = [zone.iteration] * len(born) if zone.iteration >= 0 else self._flat(len(born), recording)
                place: Counter[int] = Counter()
                for tensor, k in zip(born, numbers, strict=True):
                    one = "one" if zone.iteration < 0 and k < 0 else ""
                    self.tensor_of[number][tensor] = (f"{base} {one}{place[k]}", k)
                    place[k] += 1

    def _flat(self, count: int, recording: Recording) -> list[int]:
        """Parameters of tensors made by one operation outside loops: a list operation makes one tensor for each, others before them."""
        length = len(recording.shapes)
        if count < length:
            return [-1] * count
        return [-1] * (count % length if count % length < count else 0) + list(range(length)) * (count // length)

    def _rename(self) -> None:
        """A tensor that a later step replaces has the slot of the one that takes its place."""
        alias: dict[str, set[str]] = defaultdict(set)
        for number in range(len(self.recordings)):
            deaths: dict[tuple[tuple[int, str], int, str], str] = {}
            names = self.tensor_of[number]
            now = self._deaths(number, self.last)
            for where, tensor in now.items():
                deaths[where] = names[tensor][0]
            for where, tensor in self._deaths(number, self.second).items():
                if where in deaths:
                    alias[names[tensor][0]].add(deaths[where])
        changed = {old: new for old, options in alias.items() for new in options if old != new and len(options) == 1}
        changed |= replaced(self._sizes_of_deaths(self.second), self._sizes_of_deaths(self.last), changed)
        for names in self.tensor_of:
            for tensor, (slot, k) in names.items():
                names[tensor] = (changed.get(slot, slot), k)

    def _deaths(self, number: int, stage: str) -> dict[tuple[tuple[int, str], int, str], int]:
        """Frees of tensors that an earlier step made, by place and what is freed there."""
        out, born = {}, set()
        places: Counter[Any] = Counter()
        for zone in self.recordings[number].stages[stage].zones:
            for kind, tensor in zone.events:
                if kind == "a":
                    born.add(tensor)
                elif tensor not in born and self.tensor_of[number].get(tensor, (GRADIENT, 0))[0] != GRADIENT:
                    where = (zone.key, zone.iteration)
                    out[(zone.key, zone.iteration, str(places[where]))] = tensor
                    places[where] += 1
        return out

    def _sizes_of_deaths(self, stage: str) -> dict[str, dict[int, int]]:
        """What a step lets go of an earlier one, of the first list: bytes by slot and parameter."""
        names, sizes = self.tensor_of[0], self.recordings[0].sizes
        return by_slot((*names[tensor], sizes[tensor]) for tensor in self._deaths(0, stage).values())

    # ---- sizes

    def _slot(self, slot: str) -> dict[str, Any]:
        rows = []
        for recording, names in zip(self.recordings, self.tensor_of, strict=True):
            for tensor, (name, k) in names.items():
                if name == slot:
                    rows.append((recording, k, recording.sizes[tensor]))
        if all(k < 0 for _, k, _ in rows):
            return {"kind": "one", "size": self._list_size(slot, [(r.shapes, size) for r, _, size in rows])}
        per_list = Counter(id(r) for r, _, _ in rows)
        stages = 1 if slot.startswith(("first", "created")) else 2
        if max(per_list.values()) <= stages and min(len(r.shapes) for r in self.recordings) > stages:
            return {"kind": "once", "size": self._once_size(slot, rows)}
        return {"kind": "each", "size": self._each_size(slot, rows)}

    def _list_size(self, slot: str, rows: list[tuple[list[Shape], int]]) -> list[list[Any]]:
        for name, value in rules.LIST_FEATURES.items():
            ratio = {size / value(shapes) for shapes, size in rows}
            if len(ratio) == 1 and (whole := ratio.pop()) == int(whole):
                return [["", name, int(whole)]]
        raise Refused(f"{self.name}: {slot}: sizes {sorted({s for _, s in rows})[:6]} are no multiple of a feature of the list")

    def _once_size(self, slot: str, rows: list[tuple[Recording, int, int]]) -> list[list[Any]]:
        sizes = {size for _, _, size in rows}
        where = [("", all(k == 0 for _, k, _ in rows))]
        where += [(c, all(k == self._first_with(r, c) for r, k, _ in rows)) for c in ("large", "small", "zero", "nonzero")]
        fits = [condition for condition, good in where if good]
        if len(sizes) != 1 or not fits:
            raise Refused(f"{self.name}: {slot}: made once, in sizes {sizes}, by parameters {[k for _, k, _ in rows]}")
        return [[fits[0], "1", sizes.pop()]]

    @staticmethod
    def _first_with(recording: Recording, condition: str) -> int:
        return next((k for k, shape in enumerate(recording.shapes) if rules.CONDITIONS[condition](shape)), -1)

    def _each_size(self, slot: str, rows: list[tuple[Recording, int, int]]) -> list[list[Any]]:
        """One term, if it holds for all parameters; otherwise one for each class of them."""
        sizes: dict[Shape, int] = {}
        for recording, k, size in rows:
            if sizes.setdefault(recording.shapes[k], size) != size:
                raise Refused(f"{self.name}: {slot}: two sizes for {recording.shapes[k]}")
        every = {shape: sizes.get(shape, 0) for recording in self.recordings for shape in recording.shapes}
        whole = self._term("", every)
        if whole is not None:
            return whole
        for one, other in (("zero", "nonzero"), ("small", "large")):
            halves = [self._term(c, {s: z for s, z in every.items() if rules.CONDITIONS[c](s)}) for c in (one, other)]
            if all(h is not None for h in halves):
                return [term for half in halves for term in half or []]
        raise Refused(f"{self.name}: {slot}: sizes such as {sorted(every.items())[:8]} are no multiple of a feature of the shape")

    @staticmethod
    def _term(condition: str, sizes: dict[Shape, int]) -> list[list[Any]] | None:
        if not any(sizes.values()):
            return []
        for name in rules.FEATURES:
            values = [(rules.feature(name, r, c), size) for (r, c, _), size in sizes.items()]
            ratios = {size / value if value else (0 if not size else -1) for value, size in values if value or size}
            if len(ratios) == 1 and (ratio := next(iter(ratios))) == int(ratio) > 0:
                return [[condition, name, int(ratio)]]
        return None

    # ---- events

    def _stage(self, stage: str) -> list[dict[str, Any]]:
        stretches: dict[int, dict[str, Any]] = {}
        order: dict[int, list[str]] = {}
        events: dict[tuple[int, str], list[list[str]]] = {}
        for number, recording in enumerate(self.recordings):
            born: set[int] = set()
            sequences: dict[tuple[int, int], list[str]] = defaultdict(list)
            for zone in recording.stages[stage].zones:
                stretch, key = zone.key
                stretches.setdefault(stretch, {"each": zone.iteration >= 0})
                sequences[stretch, zone.iteration].append(key)
                coded = self._coded(number, zone, born)
                known = events.setdefault(zone.key, [])
                events[zone.key] = merged(known, coded)
            for (stretch, _), keys in sequences.items():
                order[stretch] = merged(order.get(stretch, []), keys)
        out = []
        for stretch in sorted(stretches):
            listed = [e for key in order[stretch] for e in events.get((stretch, key), [])]
            if listed:
                out.append({"each": stretches[stretch]["each"], "events": listed})
        return out

    def _coded(self, number: int, zone: Zone, born: set[int]) -> list[list[str]]:
        """The rule's events of a zone; frees of lists are one event."""
        names, length = self.tensor_of[number], len(self.recordings[number].shapes)
        out: list[list[str]] = []
        groups: dict[tuple[str, str], list[int]] = {}
        burst: list[tuple[str, str, int]] = []

        def end() -> None:
            for kind, slot, k in burst:
                groups.setdefault((kind, slot), []).append(k)
            for (kind, slot), numbers in groups.items():
                if zone.iteration >= 0:
                    for k in numbers:
                        which = {0: "own", -1: "before", length - 1: "last"}.get(k - zone.iteration) if k >= 0 else "one"
                        if which is None:
                            raise Refused(f"{self.name}: {zone.key} frees {slot} of parameter {k} at parameter {zone.iteration}")
                        out.append([kind, slot, which])
                elif numbers == [-1]:
                    out.append([kind, slot, "one"])
                elif len(numbers) == length:
                    out.append([kind, slot, "all"])
                elif numbers in ([0], [length - 1]):
                    out.append([kind, slot, "first" if numbers == [0] else "last"])
                else:
                    raise Refused(f"{self.name}: {zone.key} frees {slot} of parameters {numbers[:5]} ... of {length}")
            burst.clear()
            groups.clear()

        for kind, tensor in zone.events:
            slot, k = names.get(tensor, ("unknown", -1))
            if kind == "a":
                end()
                born.add(tensor)
                if ["a", slot] not in out:
                    out.append(["a", slot])
            else:
                burst.append(("f" if tensor in born or slot == GRADIENT else "i", slot, k))
        end()
        return out

    # ---- proof

    def _check(self, rule: dict[str, Any]) -> None:
        for number, recording in enumerate(self.recordings):
            made: frozenset[str] = frozenset()
            for stage, label in (("created", "created"), (self.first, "first"), (self.last, "later")):
                if label == "later":
                    made = frozenset(s for s, slot in rule["slots"].items() if slot["kind"] == "once")
                wanted = self._recorded(number, stage)
                given = self._expanded(rule, label, recording.shapes, made)
                if wanted != given:
                    at = next((i for i, (a, b) in enumerate(zip(wanted, given, strict=False)) if a != b), min(len(wanted), len(given)))
                    raise Refused(
                        f"{self.name}: {label} of {len(recording.shapes)} parameters: burst {at} of {len(wanted)}: recorded "
                        f"{wanted[at][:4] if at < len(wanted) else None}, the rule gives {given[at][:4] if at < len(given) else None}"
                    )

    def _recorded(self, number: int, stage: str) -> list[list[Any]]:
        recording, names = self.recordings[number], self.tensor_of[number]
        once = {slot for slot, what in self.slots.items() if what["kind"] == "once"}
        events = []
        for kind, tensor in ((kind, t) for zone in recording.stages[stage].zones for kind, t in zone.events):
            slot, k = names.get(tensor, ("?", -1))
            events.append((kind, slot, -1 if slot in once else k, recording.sizes[tensor]))
        return bursts(events)

    @staticmethod
    def _expanded(rule: dict[str, Any], label: str, shapes: list[Shape], made: frozenset[str]) -> list[list[Any]]:
        slots, events = rule["slots"], []
        for kind, slot, k in rules.expand(rule["stages"][label], slots, shapes, made):
            what = slots[slot]
            if what["kind"] == "each":
                size = rules.size_of(what["size"], shapes[k])
            elif what["kind"] == "one":
                size = rules.size_of_list(what["size"], shapes)
            else:
                size = what["size"][0][2]
            if size:
                events.append(("a" if kind == "a" else "f", slot, k, size))
        return bursts(events)


def extract(name: str, runs: dict[str, Any]) -> dict[str, Any]:
    """The rule of an optimizer. Raises Refused."""
    return Extractor(name, {kind: read(run) for kind, run in runs.items()}).rule()
