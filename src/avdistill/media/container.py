"""Opening of media files: one file at a time, of a format that holds its video and audio itself."""

import errno
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer

from avdistill.errors import UnreadableFileError
from avdistill.storage.url import RangeReader, Url

# The demuxers of FFmpeg that read the file they are given and no other, and that do not take any text for a video. Not
# among them: playlists and descriptions of streams (concat, hls, dash, imf, sdp, webm_dash_manifest), formats with
# sibling files (image2 patterns, mlv, vobsub), drawings and scripts in text (tty, bin, xbin, adf, idf, svg_pipe, sbg),
# devices (lavfi, v4l2, x11grab ...), and PCM or pixels without a header. Subtitles are there to be found without video.
FORMATS = """
    mov matroska avi mpegts mpeg flv live_flv kux asf asf_o ogg mxf gxf nut nsv nuv wtv ty pva pmp rm ivr swf dv ivf
    dhav mpegvideo m4v h261 h263 h264 hevc vvc av1 obu evc apv avs2 avs3 cavsvideo dirac dnxhd vc1 vc1test mjpeg
    mjpeg_2000 mpjpeg ingenient ipu yuv4mpegpipe cine r3d lxf mgsts simbiosis_imx ser filmstrip mxg smjpeg nc vivo
    lmlm4 lvf ifv iv8 hxvs luodat xmv rpl mv mtv mvi fits pdv

    mp3 aac loas ac3 ac4 eac3 dts dtshd mlp truehd flac wav w64 wsd aiff caf au ape tta tak wv mpc mpc8 shn osq bonk
    apac iamf amr amrnb amrwb act aea oma dsf dss daud ircam nistsphere nsp paf epaf pvf qcp qoa rka rso sds sdx sol sox
    spdif s337m voc vqf wve xa xwma lc3 aa bit gsm g722 g723_1 g726 g726le g728 g729 ilbc sbc aptx aptx_hd codec2 dfpwm
    alaw mulaw sln avr hcom mmf laf wavarc smush

    srt ass webvtt

    gif apng jpegxl_anim ico bmp_pipe cri_pipe dds_pipe dpx_pipe exr_pipe gem_pipe gif_pipe hdr_pipe j2k_pipe jpeg_pipe
    jpegls_pipe jpegxl_pipe jpegxs_pipe pam_pipe pbm_pipe pcx_pipe pfm_pipe pgm_pipe pgmyuv_pipe pgx_pipe phm_pipe
    photocd_pipe pictor_pipe png_pipe ppm_pipe psd_pipe qdraw_pipe qoi_pipe sgi_pipe sunrast_pipe tiff_pipe vbn_pipe
    webp_pipe xbm_pipe xpm_pipe xwd_pipe

    3dostr 4xm aax ace acm adp ads adx afc aix alp anm apc apm argo_asf argo_brp argo_cvg ast avs bethsoftvid bfi bfstm
    bink binka bmv boa brstm c93 cdg cdxl dcstr derf dfa dsicin dxa ea ea_cdata film_cpk flic frm fsb fwse gdv genh hca
    hnm idcin iff ipmovie iss jv kvag mca mm mods moflex msf msp mtaf musx pp_bnk psxstr redspark rl2 roq rsd scd sdns
    sdr2 sga siff smk svag svs thp tiertexseq tmv txd usm vag vividas vmd vpk wady wc3movie wsaud wsvqa xmd xvag yop
"""
_OPTIONS = {"format_whitelist": ",".join(FORMATS.split()), "protocol_whitelist": "file"}


@contextmanager
def open_container(path: Path) -> Iterator[InputContainer]:
    """Open a media file for demuxing. Neither FFmpeg nor what the file says can make it open another file.

    Raises:
        UnreadableFileError: the file is of a format that is not in `FORMATS`.
        av.error.FFmpegError: it is not a media file.
        StorageError: it is on a storage that does not answer, whatever FFmpeg made of that.
    """
    with nullcontext() if not isinstance(path, Url) else closing(RangeReader(path)) as ranges:
        try:
            with _open(path, ranges) as container:
                yield container
        finally:
            if ranges is not None and ranges.failure is not None:
                raise ranges.failure


def _open(path: Path, ranges: RangeReader | None) -> InputContainer:
    try:
        # Absolute: FFmpeg takes the "12:" of a relative name 12:30.mp4 for a protocol.
        source: Any = str(path.absolute()) if ranges is None else ranges
        return av.open(source, metadata_errors="ignore", options=dict(_OPTIONS))
    except av.error.ArgumentError as error:
        if error.errno != errno.EINVAL:
            raise
        raise UnreadableFileError(
            f"{path}: expected a file that holds video or audio, found a playlist, an image sequence, text or another "
            "format that is not read"
        ) from error
