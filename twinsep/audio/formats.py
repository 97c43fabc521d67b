"""File name extensions of sound files."""

#: Lower-case extensions of the files in a folder that count as sound.
AUDIO_EXTENSIONS = frozenset(
    f".{name}"
    for name in (
        *("wav", "wave", "flac", "mp3", "ogg", "oga", "opus", "m4a", "m4b", "aac", "aif", "aiff", "aifc", "w64"),
        *("rf64", "caf", "au", "wma", "mp4", "m4v", "mov", "mkv", "webm", "mka"),
    )
)
