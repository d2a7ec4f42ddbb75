"""`glowserve inspect`."""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from google.protobuf import json_format

from glowserve.cli.failure import Failure
from glowserve.images import COLOURS
from glowserve.messages import preparation_of
from glowserve.output import counted, printable
from glowserve.v1.manifest_pb2 import Flow, Manifest, Preparation
from glowserve.verification import steps_table, verification_table

_MOST_CLASSES = 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's arguments."""
    parser.add_argument(
        "bundle", type=Path, metavar="BUNDLE", help="REPOSITORY/MODEL (the newest version), or .../VERSION"
    )
    parser.add_argument("--json", action="store_true", help="print the manifest as JSON")


def run(args: argparse.Namespace) -> int:
    """Prints a bundle's manifest."""
    from glowserve.runtime.attributes import bundle_attributes
    from glowserve.runtime.errors import GlowserveError
    from glowserve.runtime.repository import newest_bundle

    try:
        bundle = newest_bundle(args.bundle)
        attributes = bundle_attributes(bundle)
    except GlowserveError as error:
        raise Failure(error, 2) from error
    manifest = bundle.manifest
    if args.json:
        print(json_format.MessageToJson(manifest, preserving_proto_field_name=True))
        return 0
    for name, text in _facts(manifest):
        print(printable(f"{name:<14}{text}"))
    print()
    print(f"{'graph':<16}{'nodes':>7}{'MB':>9}{'million operations per image':>30}  sha256")
    for file in (file for file in manifest.files if file.nodes):
        size, operations = file.size / 1e6, file.operations / 1e6
        row = f"{file.name:<16}{file.nodes:>7}{size:>9.2f}{operations:>30.1f}  {file.sha256[:16]}..."
        print(printable(row))
    print()
    print(verification_table(manifest))
    print()
    print(steps_table(manifest))
    if attributes.names:
        print(f"\n{'attribute':<58}{'separated':>10}")
        for name, separated in zip(attributes.names, attributes.separated, strict=True):
            print(printable(f"{name:<58}{separated:>10.1%}"))
    return 0


def _facts(manifest: Manifest) -> list[tuple[str, str]]:
    image, flow, training = manifest.image, manifest.flow, manifest.training
    colours = COLOURS.get(image.channels, f"{image.channels} channels")
    bits = manifest.calibration.bits_per_dim
    trained = f"by {training.implementation or 'glowserve'}"
    if training.steps:
        trained += f", {training.steps:,} steps, {training.images_seen:,} images of {training.data}"
    lowest, highest = min(bits), max(bits)
    return [
        ("model", f"{manifest.model}, version {manifest.version}"),
        ("written", f"{manifest.created_at.ToJsonString()} by glowserve {manifest.glowserve_version}"),
        ("image", f"{image.height} x {image.width} {colours}, {counted(image.n_bits, 'bit')}"),
        ("pictures", _preparation(manifest.preparation)),
        (
            "flow",
            f"L={flow.levels} K={flow.steps_per_level} width={flow.width}, {_couplings(flow)}, "
            f"{flow.parametrization} 1x1 convolutions, {flow.dequantization or 'uniform'} dequantization, "
            f"{flow.preprocessing or 'centre'} preprocessing, {flow.parameters:,} parameters",
        ),
        *([("classes", _classes(flow))] if flow.classes else []),
        ("precision", f"{flow.precision or 'fp32'} in the coupling networks"),
        ("trained", trained),
        (
            "calibration",
            f"{counted(len(bits), 'image')} of {manifest.calibration.data}: {lowest:.3f} to {highest:.3f}, "
            f"median {statistics.median(bits):.3f} bits/dim",
        ),
        ("tools", ", ".join(f"{tool} {version}" for tool, version in sorted(manifest.tools.items()))),
    ]


def _preparation(message: Preparation) -> str:
    """How pictures become images: "crop, bicubic, transparent pixels on 255"."""
    prepared = preparation_of(message)
    bits = "" if prepared.bits_used == 16 else f", {prepared.bits_used} of 16 bits used"
    return f"{prepared.fit}, {prepared.filter}, background {prepared.background}{bits}"


def _classes(flow: Flow) -> str:
    """Names and shares: "cat 60.0 %, dog 40.0 %"."""
    shown = [f"{each.name} {each.share:.1%}" for each in flow.classes[:_MOST_CLASSES]]
    return ", ".join(shown) + (
        f", and {len(flow.classes) - len(shown)} more" if len(flow.classes) > len(shown) else ""
    )


def _couplings(flow: Flow) -> str:
    scale = f" ({flow.coupling_scale})" if flow.coupling_scale else ""
    checkerboards = f" and {flow.checkerboards} checkerboards" if flow.checkerboards else ""
    return f"{flow.coupling} coupling{scale}{checkerboards}"
