"""The file name extensions of sound."""

#: Extensions, in lower case, of files that are taken for sound in a folder.
AUDIO_EXTENSIONS = frozenset(
    f".{name}"
    for name in (
        *("wav", "wave", "flac", "mp3", "ogg", "oga", "opus", "m4a", "m4b", "aac", "aif", "aiff", "aifc", "w64"),
        *("rf64", "caf", "au", "wma", "mp4", "m4v", "mov", "mkv", "webm", "mka"),
    )
)
