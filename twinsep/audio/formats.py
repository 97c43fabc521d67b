"""File name extensions of sound files."""

#: Lower-case extensions of the files in a folder that count as sound.
AUDIO_EXTENSIONS = frozenset(
    f".{name}"
    for name in (
        *("wav", "wave", "flac", "mp3", "ogg", "oga", "opus", "m4a", "m4b", "aac", "aif", "aiff", "aifc", "w64"),
        *("rf64", "caf", "au", "wma", "mp4", "m4v", "mov", "mkv", "webm", "mka"),
    )
)
#: The same, and extensions of songs that count only if they are named themselves, because other files have them too.
MEDIA_EXTENSIONS = AUDIO_EXTENSIONS | frozenset(
    f".{name}"
    for name in (
        *("3gp", "aa3", "ac3", "adts", "amr", "ape", "asf", "avi", "bwf", "dff", "dsf", "dts", "eac3", "flv", "m2ts"),
        *("m4r", "mov", "mp1", "mp2", "mpa", "mpc", "mpeg", "mpg", "mpga", "mts", "ogv", "ogx", "oma", "ra", "rm"),
        *("snd", "spx", "tak", "ts", "tta", "vob", "voc", "wmv", "wv"),
    )
)
