"""Processes scans in three overlapping stages: while one is computed, the next is read, the last written."""

import dataclasses
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import jax

from cmb_jax.cohort.dataset import ResultFiles, logs_folder, result_files, withdraw_result, write_json
from cmb_jax.cohort.result import Outcome, Status, failure_log, what_changed, write_failure, write_result
from cmb_jax.cohort.scan_images import RegionLabels, ScanImages, TakenImage, read_scan_images, taken_images
from cmb_jax.datasets.bids.choice import Choice, choose
from cmb_jax.datasets.bids.layout import Scan
from cmb_jax.errors import NotAnalysableError, UserError
from cmb_jax.inference.bundle import WeightsBundle, load_bundle
from cmb_jax.inference.options import ScanOptions
from cmb_jax.inference.predict import CmbDetector, FoundBoxes, Prediction
from cmb_jax.inference.scan import Clock, PreparedScan, prepare_scan
from cmb_jax.io import volume

STAGES = ("reading", "network", "writing")
"""Names of the stages, for people."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lane(Generic[Item, Result]):
    """The three stages of one device; each runs on a thread of its own."""

    read: Callable[[Item], Any]
    compute: Callable[[Any], Any]
    write: Callable[[Any], Result]


class StageTimes:
    """How long the stages took."""

    def __init__(self) -> None:
        self.elapsed_s = 0.0
        self._spent: list[tuple[int, float]] = []  # appended to from all threads

    def timed(self, stage: int, work: Callable[[Any], Any], value: Any) -> Any:
        """Call the work of a stage on a value, and add up its time."""
        tick = time.perf_counter()
        try:
            return work(value)
        finally:
            self._spent.append((stage, time.perf_counter() - tick))

    @property
    def seconds(self) -> tuple[float, float, float]:
        """Seconds in each stage, over all lanes."""
        read, compute, write = (sum(s for at, s in self._spent if at == stage) for stage in range(3))
        return read, compute, write

    def summary(self) -> str:
        """One line: seconds of each stage, and how much of the work went on beside other work.

        Where all cores are busy, overlapping stages slow each other down, so that fewer seconds are saved
        than overlap.
        """
        parts = ", ".join(f"{name} {s:.1f} s" for name, s in zip(STAGES, self.seconds, strict=True))
        work = sum(self.seconds)
        overlap = max(0.0, work - self.elapsed_s)
        share = overlap / work if work else 0.0
        return f"{parts}: {work:.1f} s of work in {self.elapsed_s:.1f} s, {share:.0%} of it beside other work"


def overlapped(
    items: Iterable[Item], lanes: Sequence[Lane[Item, Result]], times: StageTimes
) -> Iterator[Result]:
    """Run items through the stages; yields results as they are done.

    A lane has at most three items in hand, one for each stage, so that memory is bounded. The next item goes
    to the first lane that is free. Inside a lane items keep their order.

    Args:
        items: taken one by one, in this thread.
        lanes: one for each device.
        times: filled meanwhile.
    """
    tick = time.perf_counter()
    done: SimpleQueue[tuple[int, Future[Result]]] = SimpleQueue()
    # each lane is listed once per stage: that many items may be in its hands, and no more
    free = deque(number for _ in STAGES for number in range(len(lanes)))
    with ExitStack() as stack:
        pools = [[ThreadPoolExecutor(1, f"{name}-{n}") for name in STAGES] for n in range(len(lanes))]
        for pool in (pool for lane_pools in pools for pool in lane_pools):
            stack.callback(pool.shutdown, cancel_futures=True)
        # results are taken when a place is needed, so that the caller's loop sets the pace of reading
        for item in items:
            if not free:
                yield _next(done, free)
            number = free.popleft()
            written = _submit(lanes[number], pools[number], item, times)
            written.add_done_callback(partial(_hand_back, done, number))
        for _ in range(len(STAGES) * len(lanes) - len(free)):
            yield _next(done, free)
    times.elapsed_s += time.perf_counter() - tick


def _submit(
    lane: Lane[Item, Result], pools: Sequence[ThreadPoolExecutor], item: Item, times: StageTimes
) -> Future[Result]:
    """The chain of one item; each stage waits, on its own thread, for what the one before gives."""
    read = pools[0].submit(times.timed, 0, lane.read, item)
    computed = pools[1].submit(lambda: times.timed(1, lane.compute, read.result()))
    return pools[2].submit(lambda: times.timed(2, lane.write, computed.result()))


def _hand_back(done: SimpleQueue[tuple[int, Future[Result]]], number: int, written: Future[Result]) -> None:
    done.put((number, written))


def _next(done: SimpleQueue[tuple[int, Future[Result]]], free: deque[int]) -> Result:
    number, future = done.get()
    free.append(number)
    return future.result()


Say = Callable[[str], None]


class DeviceDetector:
    """`CmbDetector` on one device."""

    def __init__(self, bundle: WeightsBundle, device: jax.Device, options: ScanOptions) -> None:
        self.device = device
        self._detector = CmbDetector(bundle, device, options)

    def prepare(self, images: ScanImages, say: Say) -> PreparedScan:
        """Phase, regions, working grid."""
        return prepare_scan(
            volume.ScanImages(swi=images.swi, phase=images.phase, magnitude=images.magnitude),
            spacing_mm=self._detector.config.data.spacing_mm,
            phase_sign=images.phase_sign,
            phase_range=images.phase_range,
            region_map=images.region_map,
            progress=say,
        )

    def search(self, prepared: PreparedScan) -> FoundBoxes:
        """The network."""
        return self._detector.search(prepared)

    def conclude(self, images: ScanImages, prepared: PreparedScan, found: FoundBoxes) -> Prediction:
        """Places and reasons."""
        return self._detector.conclude(images.swi, prepared, found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The detector on every device, and the settings that all scans are processed with."""

    bundle: WeightsBundle
    detectors: tuple[DeviceDetector, ...]  # one for each device
    options: ScanOptions
    regions: RegionLabels | None = None  # of `options.regions`, in place of the region network

    @property
    def record(self) -> dict[str, Any]:
        """What results depend on besides the images."""
        return self.options.record(self.bundle, None if self.regions is None else self.regions.table.sha256)


def detector_pipeline(
    options: ScanOptions, devices: Sequence[jax.Device], regions: RegionLabels | None = None
) -> Pipeline:
    """The detector on each of the devices; `regions` take the place of the region network.

    Raises:
      UserError: no such weights, or no such range of the phase.
    """
    options.stated_range()
    bundle = load_bundle(options.weights, options.flips, options.precision)
    return Pipeline(
        bundle=bundle,
        detectors=tuple(DeviceDetector(bundle, device, options) for device in devices),
        options=options,
        regions=regions,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Opened:
    """A scan on its way through the stages."""

    scan: Scan
    choice: Choice
    files: ResultFiles
    taken: tuple[TakenImage, ...]
    images: ScanImages
    prepared: Any
    clock: Clock
    found: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScanWork:
    """Processes the scans of one run: opens, searches and writes them."""

    root: Path  # of the source data set
    out: Path
    pipeline: Pipeline
    overwrite: bool
    say: Say

    def lane(self, detector: DeviceDetector) -> Lane[Scan, Outcome]:
        """The stages on a detector's device; an outcome that is known early passes through the later ones."""

        def compute(opened: _Opened | Outcome) -> _Opened | Outcome:
            if isinstance(opened, Outcome):
                return opened
            return self._guarded(opened.scan, detector, lambda: self._search(opened, detector))

        def write(opened: _Opened | Outcome) -> Outcome:
            outcome = (
                opened
                if isinstance(opened, Outcome)
                else self._guarded(opened.scan, detector, lambda: self._write(opened, detector))
            )
            self._settle(outcome)
            return outcome

        return Lane(
            read=lambda scan: self._guarded(scan, detector, lambda: self._open(scan, detector)),
            compute=compute,
            write=write,
        )

    def _guarded(self, scan: Scan, detector: DeviceDetector, work: Callable[[], Result]) -> Result | Outcome:
        """The result of the work; whatever goes wrong with a scan becomes its outcome."""
        # every exception is caught here: one in a stage's thread would surface only when its result is taken,
        # and would end the run for all other scans
        try:
            with jax.default_device(detector.device):
                return work()
        except NotAnalysableError as error:
            reason = self._without_paths(str(error))
            return Outcome(name=scan.name, status=Status.NOT_ANALYSABLE, reason=reason)
        except UserError as error:
            reason = str(error)
        except MemoryError:
            reason = "takes more memory than there is"
        except OSError as error:  # a disk that is full or gone
            reason = f"{error.filename or 'a file'}: {error.strerror or type(error).__name__}"
        except Exception as error:  # the other scans must go on, and the reason must not be lost
            traceback.print_exc()
            reason = f"unexpected {type(error).__name__}: {' '.join(str(error).split())}; please report it"
        return Outcome(name=scan.name, status=Status.FAILED, reason=self._without_paths(reason))

    def _open(self, scan: Scan, detector: DeviceDetector) -> _Opened | Outcome:
        """Read and prepare the images, unless the scan is finished already.

        Raises:
            UserError: images that cannot be used, a result that has been damaged.
        """
        name = scan.name
        choice = choose(scan, self.root)
        for line in choice_lines(choice):
            self.say(f"  {line}")
        files, taken = result_files(self.out, choice), taken_images(choice)
        labels = None if self.pipeline.regions is None else self.pipeline.regions.of_scan(choice)
        if labels is not None:
            self.say(f"    regions: {labels.file.relative}")
            taken = (*taken, labels.taken)
        if files.table_sidecar.is_file() and not self.overwrite:
            changed = what_changed(files, taken, self.pipeline.record)
            if changed is not None:
                reason = f"{changed} changed since; make it again with --overwrite, or give another folder"
                self.say(f"  {name}: has a result that was made otherwise: {reason}")
                return Outcome(name=name, status=Status.STALE, reason=reason)
            self.say(f"  {name}: finished by an earlier run, skipped")
            return Outcome(name=name, status=Status.SKIPPED)
        self.say(f"  {name}: reading the images")
        clock = Clock()
        with clock("reading"):
            images = read_scan_images(choice, self.pipeline.options)
            if labels is not None:
                images = dataclasses.replace(images, region_map=labels.region_map(images.swi))
        return _Opened(
            scan=scan,
            choice=choice,
            files=files,
            taken=taken,
            images=images,
            prepared=detector.prepare(images, lambda text: self.say(f"  {name}: {text}")),
            clock=clock,
        )

    def _search(self, opened: _Opened, detector: DeviceDetector) -> _Opened:
        self.say(f"  {opened.scan.name}: searching for microbleeds")
        return dataclasses.replace(opened, found=detector.search(opened.prepared))

    def _write(self, opened: _Opened, detector: DeviceDetector) -> Outcome:
        """Write the files of the result.

        Raises:
            UserError: files that cannot be written.
        """
        name, images, choice, clock = opened.scan.name, opened.images, opened.choice, opened.clock
        prediction = detector.conclude(images, opened.prepared, opened.found)
        timings = prediction.timings
        prediction = dataclasses.replace(
            prediction,
            steps=(*images.steps, *prediction.steps),
            warnings=(*choice.notes, *images.warnings, *prediction.warnings),
            timings=(),  # a result is the same bytes whenever it is made
        )
        with clock("writing"):
            write_result(
                opened.files,
                choice,
                images,
                opened.taken,
                prediction,
                self.pipeline.bundle,
                self.pipeline.record,
                viewer=self.pipeline.options.viewer,
                save_regions=self.pipeline.options.save_regions,
            )
        seconds = dict((*clock.timings[:1], *timings, *clock.timings[1:]))
        write_json(logs_folder(self.out) / "timings" / f"{name}.json", {"Scan": name, "Seconds": seconds})
        kept = len(prediction.kept)
        self.say(f"  {name}: done, {kept} kept, {len(prediction.rows) - kept} rejected")
        return Outcome(name=name, status=Status.DONE)

    def _settle(self, outcome: Outcome) -> None:
        """Write the reason of a failure, or remove an earlier one."""
        if outcome.status in (Status.FAILED, Status.NOT_ANALYSABLE):
            self.say(f"  {outcome.name}: {outcome.status.value}: {outcome.reason}")
            write_failure(self.out, outcome.name, outcome.reason, outcome.status)
            if outcome.status is Status.NOT_ANALYSABLE:
                withdraw_result(self.out, outcome.name)  # a count that an earlier version gave
        elif outcome.status in (Status.DONE, Status.SKIPPED):
            failure_log(self.out, outcome.name).unlink(missing_ok=True)

    def _without_paths(self, text: str) -> str:
        """A message without paths of this machine: it stays in the logs and the table, which are shared."""
        regions = self.pipeline.regions
        for folder in (self.out, None if regions is None else regions.root, self.root):
            if folder not in (None, Path(".")):
                text = text.replace(f"{folder}/", "")
        return text


def choice_lines(choice: Choice) -> list[str]:
    """Lines to print: which files of a scan are used and why, and which are not."""
    files = ", ".join(image.file.relative for image in choice.images)
    return [
        f"{choice.scan.name}: takes {files}",
        f"  because: {choice.why}",
        *(f"  leaves {image.file.relative}: {image.why}" for image in choice.left),
        *(f"  note: {note}" for note in choice.notes),
    ]
