"""Bad input of what is seen outside: the app, the card."""

from support.bad_input.cases import case


@case("an app that is to answer under what is no name")
def _(place):
    return ["app", "--model", str(place / "model"), "--allow-host", "https://photos.example.org"]


@case("a push under a licence that is no name")
def _(place):
    return ["push", str(place / "run"), "me/mine", "--license", "My own"]


@case("a recipe that is not there, with markup and a control character in its name")
def _(place):
    return ["train", str(place / "r[bold] a[-b] \x1b[31m.yaml")]
