"""`qn-deploy android`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from qn_deploy.cli.following import quoted, tell_next
from qn_deploy.cli.options import PATH, json_option
from qn_deploy.cli.progress import stages


@click.command("android")
@click.argument("build", type=PATH)
@click.option("--app", type=PATH, default=Path("android_demo"), show_default=True, help="Folder of the app's project.")
@click.option("--name", help="What the model is called in the app; by default as the folder BUILD, or the one above if that is build.")
@click.option("--pte", is_flag=True, help="Also take model.pte, for an app that links our native backend.")
@click.option("--install", type=PATH, metavar="APK", help="Install this built app on a device by adb; nothing is bundled.")
@click.option("--check", is_flag=True, help="Let the app on the device check the model. Exit code 0: all passed, 1: not.")
@click.option("--serial", help="The device, as `adb devices` lists it; by default the only one.")
@json_option
@click.pass_context
def command(
    context: click.Context,
    build: Path,
    app: Path,
    name: str | None,
    pte: bool,
    install: Path | None,
    check: bool,
    serial: str | None,
    as_json: bool,
) -> None:
    """Put the programs of the folder BUILD into the Android demo app, with references and hashes.

    With --install and --check the built app runs them on a phone, and the verdicts come back as rows of the report of `qn-deploy verify`.

    \b
    Examples:
      qn-deploy android build --app my_app --name mymodel
      qn-deploy android build --name mymodel --install app.apk --check
    """  # noqa: D301  # click wants the character
    from qn_deploy.android import bundle, model_name

    name = name or model_name(build)
    if install is not None or check:
        context.exit(_run_app(build, name, install, check, serial, as_json))
    bundled = bundle(build, app, name, pte)
    if as_json:
        click.echo(json.dumps({"folder": str(bundled.folder), "files": bundled.files}))
        return
    for file, size in bundled.files.items():
        click.echo(f"  {size:>9,}  {bundled.folder / file}")
    click.echo(f"  {sum(bundled.files.values()):>9,}  bytes in all")
    tell_next(f"in {quoted(app)}: gradle wrapper && ./gradlew connectedAndroidTest; README.md there tells more")


def _run_app(build: Path, name: str, install: Path | None, check: bool, serial: str | None, as_json: bool) -> int:
    from rich.console import Console

    from qn_deploy.android_app import AndroidApp
    from qn_deploy.exporting.manifest import read_manifest
    from qn_deploy.verification.report import Report

    progress, device = stages(), AndroidApp(serial)
    manifest = read_manifest(build)
    if install is not None:
        progress(f"installing {install}")
        device.install(install)
    checks = device.check(build, name, progress) if check else ()
    progress("")
    if not check:
        if as_json:
            click.echo(json.dumps({"installed": str(install)}))
        else:
            tell_next(f"qn-deploy android {quoted(build)} --name {name} --check")
        return 0
    report = Report(f"{build} on Android", manifest, checks)
    if as_json:
        click.echo(report.to_json())
    else:
        Console().print(report)
        tell_next(f"qn-deploy report {quoted(build)}")
    return 0 if report.passed else 1
