"""Word lists and espeak-ng voices of the generated singers."""

from __future__ import annotations

#: Language code → words.
WORDS: dict[str, tuple[str, ...]] = {
    language: tuple(words.split())
    for language, words in {
        "en-us": (
            "I you we they love hold feel need want leave find lose call dream wait fall run break burn stay my your "
            "the this one no only never always tonight tomorrow again away alone together inside over under through "
            "heart night light fire river summer moonlight window shadow ocean highway memory water city morning "
            "silence winter and but so when where if like to for in on with down up oh yeah baby hey"
        ),
        "es": (
            "yo te tu mi amor noche cielo corazon fuego camino siempre nunca quiero vivir bailar sola luna mar "
            "contigo sin para todo nada vuelve amanecer lejos ojos alma besos"
        ),
        "it": (
            "amore mio cuore notte sole luna mare sempre mai voglio volare con te senza strada vento vita stella "
            "cielo ancora tutto niente sogno lontano domani dentro fuori"
        ),
        "de": (
            "ich du wir liebe nacht herz feuer licht himmel immer nie ohne dich mit dir weg zeit traum leben wieder "
            "morgen regen sonne allein hier und bleib"
        ),
        "pt-br": (
            "eu voce amor noite luz mar sempre nunca quero viver dançar sozinho lua sonho coração tempo vida longe "
            "perto vem comigo saudade olhar"
        ),
        "fr": (
            "je tu nous amour nuit coeur lune soleil toujours jamais sans toi avec moi la vie reve chemin demain "
            "encore danser pleurer ciel mer loin"
        ),
    }.items()
}

#: Meaningless syllables, sung in any language.
VOCALISES = ("la", "na", "oh", "ah", "oo", "ma", "da", "hey", "lo", "ya")

#: Voice variants of espeak-ng.
FEMALE = ("f1", "f2", "f3", "f4", "f5", "Annie", "Alicia", "steph", "anika", "linda", "belinda", "shelby")
MALE: tuple[str, ...] = ("m1", "m2", "m3", "m4", "m6", "m7", "Andy", "Lee", "adam", "john", "Gene", "Mike", "Michael")
MALE += ("paul", "robert", "marcelo")
