"""An open video or image file: its video stream, its packets, and one kind of error for all that can be wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import IO

import av
from av.container import InputContainer
from av.error import ArgumentError, FFmpegError
from av.format import Flags
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from timeviper.datamodules.frames.ranges import expect_index


@dataclass(frozen=True)
class Still:
    """A file that is a picture, whatever it holds: of an animation the first frame, without times."""

    file: str | Path | IO[bytes]


@dataclass
class Strict:
    """A file of which nothing is decoded that is damaged: what decoders would conceal is an error.

    Behind a jump decoders may miss what lies before: there an error is no proof of damage."""

    file: str | Path | IO[bytes] | Still
    damaged: int = 0
    """Packets that could not be decoded, so far."""


Source = str | Path | IO[bytes] | Still | Strict

MAX_PIXELS = 2**27  # a larger frame (about 16,000 x 8,000) is refused: one alone takes 400 MB as RGB
MAX_PACKETS = 2**22  # read of one file, over all passes; 15 hours of 30 frames/s with sound
MAX_DECODED = 2**40  # pixels decoded of one file: about five hours of Full HD at 30 frames/s, frame by frame
# Matrices that libswscale converts to RGB, by their number in H.273; and of some others the one that comes nearest.
MATRICES = {0, 1, 2, 4, 5, 6, 7, 9}
NEAREST = {10: 9, 13: 9, 14: 9}  # BT.2020 for its constant luminance form, derived ones and ICtCp; else BT.709
LIMITS = {"max_pixels": str(MAX_PIXELS)}  # obeyed too while a picture is opened to learn its size
CONCEAL_NOTHING = {"err_detect": "crccheck+bitstream+buffer+explode"}
CONCEALING = {"h264", "hevc", "mjpeg", "mpeg1video", "mpeg2video", "mpeg4"}  # decoders that tell damage apart so
# What may be opened at all. Left out is whatever opens other files or addresses because its text says so (hls,
# dash, concat, sdp, vobsub, ...), and text that would be drawn (tty): data must never choose what is read.
FORMATS = (
    "3g2,3gp,amr,apng,asf,asf_o,av1,avi,avs2,avs3,bink,cavsvideo,dirac,dnxhd,dv,evc,flac,flic,flv,gif,gxf,h261,h263,"
    "h264,hevc,image2,image2pipe,ivf,kux,live_flv,m4v,matroska,mjpeg,mjpeg_2000,mov,mp3,mp4,mpeg,mpegts,mpegvideo,mxf,"
    "nsv,nut,obu,ogg,rm,smk,swf,vc1,vvc,wav,webm,wtv,yuv4mpegpipe,"
    "bmp_pipe,dds_pipe,dpx_pipe,exr_pipe,gif_pipe,hdr_pipe,ico,j2k_pipe,jpeg_pipe,jpegls_pipe,jpegxl_anim,jpegxl_pipe,"
    "pam_pipe,pbm_pipe,pcx_pipe,pgm_pipe,pgmyuv_pipe,png_pipe,ppm_pipe,psd_pipe,qoi_pipe,sgi_pipe,sunrast_pipe,"
    "tiff_pipe,webp_pipe,xbm_pipe,xpm_pipe"
)


def name_of(source: Source) -> str:
    """For messages."""
    while isinstance(source, Still | Strict):
        source = source.file
    return str(source if isinstance(source, str | Path) else getattr(source, "name", "video"))


class VideoError(ValueError):
    """A video that cannot be used: where it is, and why."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where, self.reason = where, reason

    def __reduce__(self) -> tuple[type[VideoError], tuple[str, str]]:
        return VideoError, (self.where, self.reason)  # loader processes send it to the trainer


@contextmanager
def named(where: str) -> Iterator[None]:
    """Whatever a file makes FFmpeg or PyAV raise is a `VideoError` of that file; what a disk raises stays as it is."""
    try:
        yield
    except VideoError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and not isinstance(error, FFmpegError):
            raise
        detail = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise VideoError(where, f"cannot be read as a video or image ({detail})") from error


class Container:
    """A file opened for reading the video stream that players show; a context manager.

    Raises `VideoError` for what is missing, empty, foreign, without video or absurdly large; later, when reading or
    decoding it takes more work than any real video (counted, so the same everywhere), and for whatever else than a
    `VideoError` or a disk's error is raised while it is open.
    """

    def __init__(self, source: Source) -> None:
        self._strict = source if isinstance(source, Strict) else None
        source = source.file if isinstance(source, Strict) else source
        self._still = isinstance(source, Still)
        self.source = source.file if isinstance(source, Still) else source
        self.odd_matrix: int | None = None
        """Of a frame decoded: its colours are converted with another one."""
        self.packets_left, self.pixels_left = MAX_PACKETS, MAX_DECODED
        self.where = name_of(source)
        self._open()

    def _open(self) -> None:
        """(Re)open at the first packet, with one decoder thread: the loader's processes are the parallelism."""
        self.file = self._opened()
        try:
            with named(self.where):
                self.stream = _video_stream(self.file, self.where)
        except BaseException:
            self.file.close()
            raise
        self.context = self.stream.codec_context
        self.context.thread_type, self.context.thread_count = "NONE", 1
        self.context.options = LIMITS | (CONCEAL_NOTHING if self.is_strict else {})
        self.format = self.file.format.name
        base = self.stream.time_base or Fraction(1)
        self._base = base.numerator, base.denominator
        self.tick = float(base)
        """Seconds of one unit of the stream's time stamps."""

    def _opened(self) -> InputContainer:
        return _open_file(self.source, self.where)

    def __enter__(self) -> Container:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()
        if error is not None:
            with named(self.where):
                raise error

    @property
    def is_strict(self) -> bool:
        """Whether damage is an error."""
        return self._strict is not None and self.context.name in CONCEALING

    @property
    def is_image(self) -> bool:
        return self._still or self.format == "image2" or self.format.endswith("_pipe")

    @property
    def usual(self) -> int:
        """Ticks of a frame at the rate that the container states."""
        return max(round(1 / float(self.stream.average_rate or 25) / self.tick), 1)

    @property
    def leaps(self) -> bool:
        """Whether a leap of its clock means nothing, as in recordings of broadcasts."""
        return bool(self.file.format.flags & Flags.ts_discont.value)

    @property
    def has_edits(self) -> bool:
        """Whether it may show parts of its stream in another order, with time stamps that follow the edits."""
        return self.format.startswith("mov")

    @property
    def is_reordered(self) -> bool:
        """Whether frames are shown in another order than packets say: AVI knows decode times only."""
        return self.format == "avi" and self.context.has_b_frames

    @property
    def is_bare(self) -> bool:
        """Whether it is a codec's stream without a container: time stamps are made up, anew after each seek."""
        return bool(self.file.format.flags & Flags.no_timestamps.value)

    @property
    def is_whole(self) -> bool:
        """Whether the file is known to be as long as its header says; Matroska's says so."""
        if not self.format.startswith("matroska"):
            return False
        if isinstance(self.source, str | Path):
            if not os.path.isfile(self.source):
                return False
            with open(self.source, "rb") as file:
                return _segment_is_there(file)
        place = self.source.tell()
        try:
            return _segment_is_there(self.source)
        finally:
            self.source.seek(place)  # where FFmpeg left it

    def shows(self, packet: Packet) -> bool:
        """Whether a frame is shown for a packet: not before the start of an edit, nor for a mere reference frame, nor
        for a frame that is not coded because it was dropped."""
        if packet.is_discard:
            return False
        if self.context.name == "vp8":
            return bool(memoryview(packet)[0] & 0x10)
        if self.context.name == "mpeg4" and packet.size < 8 and not self.context.has_b_frames:
            return bytes(packet)[:4] != b"\x00\x00\x01\xb6"  # so short a picture says just that it is none
        return True

    def seconds(self, stamp: int) -> float:
        """A time stamp of the stream on the container's clock."""
        return stamp * self._base[0] / self._base[1]

    def packets(self, every_stream: bool = False) -> Iterator[Packet]:
        """Packets from here on. Damage to the container ends them, as the end of the file does."""
        packets = self.file.demux() if every_stream else self.file.demux(self.stream)
        while True:
            try:
                packet = next(packets)
            except (FFmpegError, StopIteration):
                return
            self.packets_left -= 1
            if self.packets_left < 0:
                raise VideoError(self.where, f"reading it takes more than the limit of {MAX_PACKETS:,} packets")
            if packet.size:
                yield packet

    def decode(self, packet: Packet | None) -> list[VideoFrame]:
        """Frames that the decoder gives out after this packet; None drains it. FFmpegError for a damaged one.

        A colour matrix that cannot be converted is replaced by the nearest that can: greys stay greys.
        """
        self.pixels_left -= self.context.width * self.context.height
        if self.pixels_left < 0:
            raise VideoError(
                self.where,
                f"decoding the wanted frames takes more than the limit of {MAX_DECODED:,} pixels; cut it, or encode it "
                "smaller or with more keyframes (`timeviper shards check --fix` does)",
            )
        try:
            frames = self.context.decode(packet)
        except FFmpegError:
            if self._strict:
                self._strict.damaged += 1
            raise
        for frame in frames:
            if frame.colorspace not in MATRICES:
                self.odd_matrix = int(frame.colorspace)
                frame.colorspace = NEAREST.get(self.odd_matrix, 1)
        return frames

    def seek(self, stamp: int) -> bool:
        """Move to a keyframe near a time stamp, before it where the container can; whether it could."""
        try:
            self.file.seek(stamp, stream=self.stream)
        except FFmpegError:
            return False
        return True

    def rewind(self, stamp: int | None) -> None:
        """Move to the first packet, whose time stamp this is; None: where that does not say where it is."""
        if stamp is None or not self.seek(stamp):
            self.file.close()
            self._open()


def _open_file(source: str | Path | IO[bytes], where: str) -> InputContainer:
    options, kind = LIMITS | {"format_whitelist": FORMATS, "protocol_whitelist": "none"}, None
    with named(where):
        target: str | IO[bytes]
        if isinstance(source, str | Path):
            if not os.path.exists(source) and "://" not in str(source):  # FFmpeg would not open a picture yet
                raise VideoError(where, "no such file")
            if os.path.isfile(source) and not os.path.getsize(source):
                raise VideoError(where, "is empty (0 bytes)")
            target = f"file:{source}" if os.path.exists(source) else str(source)  # a colon in a name is no protocol
            options |= {"protocol_whitelist": "file,http,https,tcp,tls", "pattern_type": "none"}  # of images: %d is %d
        else:
            if not source.seek(0, os.SEEK_END):
                raise VideoError(where, "is empty (0 bytes)")
            expect_index(source)
            source.seek(0)
            # Told which it is, FFmpeg need not ask every format, which takes a quarter of the opening.
            kind = "mov" if source.read(8)[4:] == b"ftyp" else None
            source.seek(0)
            target = source
        try:
            return av.open(target, "r", format=kind, options=options, metadata_errors="replace")
        except FileNotFoundError as error:
            raise VideoError(where, "no such file") from error
        except PermissionError as error:
            raise VideoError(where, "no permission to read it") from error
        except ArgumentError as error:  # what FFmpeg says of a format that is not in the list
            detail = "not one of the formats that are read, or one that names other files"
            raise VideoError(where, f"cannot be read as a video or image ({detail})") from error


def _segment_is_there(file: IO[bytes]) -> bool:
    """Of Matroska: whether the segment that the file consists of, after a header, ends in it."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(4096)
    at = head.find(b"\x18\x53\x80\x67") + 4  # the segment's ID; then its size, whose first set bit tells its bytes
    if at < 4 or at >= len(head) or not head[at]:
        return False
    width = 9 - head[at].bit_length()
    length = int.from_bytes(head[at : at + width], "big") - (1 << 7 * width)
    return length != (1 << 7 * width) - 1 and at + width + length <= size  # all ones: unknown


def _video_stream(file: InputContainer, where: str) -> VideoStream:
    """The video stream that FFmpeg's players choose; of those that are not the cover picture of a sound file."""
    streams = [s for s in file.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        kinds = sorted({stream.type for stream in file.streams})
        raise VideoError(where, f"has no video stream (only: {', '.join(kinds) or 'nothing'})")
    best = file.streams.best("video")
    stream = next((s for s in streams if s is best), streams[0])
    context = stream.codec_context
    if context is None:
        raise VideoError(where, "its codec is unknown to this build of FFmpeg")
    if context.width * context.height > MAX_PIXELS:
        size = f"{context.width} x {context.height}"
        raise VideoError(where, f"frames of {size} pixels are larger than the limit of {MAX_PIXELS:,} pixels")
    return stream
