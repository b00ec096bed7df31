"""Which runtime and which precision `load` takes: what was asked for, or the first that can run the bundle here."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

from edgevtx.errors import InputError, RuntimeUnavailableError, VerificationError
from edgevtx.manifest import REFUSED, Manifest
from edgevtx.runtimes import BACKENDS, get_backend, probe
from edgevtx.runtimes.base import EngineOptions
from edgevtx.versions import in_range

log = logging.getLogger(__name__)

AUTO_ORDER = ("tensorrt", "tensorrt-rtx", "openvino", "onnxruntime")
"""The order in which `runtime="auto"` looks for a runtime that is installed and that the bundle has a graph for."""

_OVERRIDE = "pass allow_unverified=True (--allow-unverified)"


def choose_runtime(
    manifest: Manifest,
    asked: str,
    precision: str | None,
    options: EngineOptions,
    *,
    allow_unverified: bool = False,
) -> str:
    """The target to use: the one asked for, or the first of `AUTO_ORDER` that can run this bundle here.

    That is one whose package is installed in a version that a graph serves, whose verdict does not refuse it, and which
    has the device of `options` in a precision that fits.
    """
    served = [target for target in AUTO_ORDER if any(graph.target == target for graph in manifest.graphs)]
    if asked != "auto":
        get_backend(asked)
        if asked != "null" and asked not in served:
            raise RuntimeUnavailableError(
                f"this bundle has no graph for {asked}, only for {', '.join(served) or 'nothing'}; "
                f"export it again with --targets {asked}"
            )
        return asked
    reasons: dict[str, str] = {}
    unverified = []
    for target in served:
        if target not in BACKENDS:
            continue
        found = probe(target)
        wanted = precision or _recommended(manifest, target)
        if not found.available:
            reasons[target] = f"{found.reason} ({found.install})"
        elif not any(graph.target == target and in_range(found.version, graph.versions) for graph in manifest.graphs):
            reasons[target] = f"no graph serves version {found.version}"
        elif not (allow_unverified or _is_accepted(manifest, target, wanted)):
            verdict = manifest.verdict(target, wanted)
            reasons[target] = "never verified" if verdict is None else f"marked {verdict.status!r}: {verdict.reason}"
            unverified.append(target)
        else:
            lacking = _lacking(manifest, target, precision, options)
            if all(lacking.values()):
                reasons[target] = lacking[wanted]
                continue
            if reasons:
                log.info("passed over: %s", _listed(reasons))
            return target
    if unverified:
        return unverified[0]  # `load` says why it refuses it
    raise RuntimeUnavailableError(
        f"none of this bundle's runtimes is usable here: {_listed(reasons) or 'it has no graphs'}"
    )


def choose_precision(
    manifest: Manifest,
    target: str,
    asked: str | None,
    options: EngineOptions,
    *,
    allow_unverified: bool = False,
) -> str:
    """The precision asked for, or the one that the bundle recommends for the target.

    Where the device does not have the recommended one, such as bf16 on a GPU of before 2020, it is the next that passed
    verification and that the device has, but for int8, which is recommended or asked for by name. Raises `InputError`
    where the runtime has no such precision, and `VerificationError` where the bundle has no verdict for it or one that
    refuses it, unless `allow_unverified`.
    """
    known = get_backend(target).PRECISIONS
    if asked and asked not in known and target != "null":
        raise InputError(f"{target} is offered in {', '.join(known)}, and {asked!r} was asked for; choose one of these")
    precision = asked or _recommended(manifest, target)
    if not (allow_unverified or target == "null" or _is_accepted(manifest, target, precision)):
        _refuse(manifest, target, precision)
    if asked or target == "null":
        return precision
    lacking = _lacking(manifest, target, None, options)
    possible = next((name for name, why in lacking.items() if not why), precision)  # else `load` says why there is none
    if possible != precision:
        log.warning("%s runs in %s on %s: %s", manifest.name, possible, target, lacking[precision])
    return possible


def _lacking(manifest: Manifest, target: str, asked: str | None, options: EngineOptions) -> dict[str, str]:
    """The precisions to try, the best first: each with why this device does not have it, or "".

    Those are the one asked for alone, or the recommended one and the others that passed, but int8. After the first that
    the device has, none is looked at.
    """
    wanted = asked or _recommended(manifest, target)
    others = [] if asked else _unasked(manifest, target)
    tried: dict[str, str] = {}
    for precision in dict.fromkeys((wanted, *(name for name in others if _is_accepted(manifest, target, name)))):
        tried[precision] = _objection(target, replace(options, precision=precision))
        if not tried[precision]:
            break
    return tried


def _objection(target: str, options: EngineOptions) -> str:
    """Why a device, or a precision on it, is not to be had here, or ""."""
    try:
        get_backend(target).fingerprint(options)
    except (RuntimeUnavailableError, InputError) as error:
        return str(error)
    return ""


def _is_accepted(manifest: Manifest, target: str, precision: str) -> bool:
    verdict = manifest.verdict(target, precision)
    return verdict is not None and verdict.status not in REFUSED


def _listed(reasons: Mapping[str, str]) -> str:
    return "; ".join(f"{target}: {reason}" for target, reason in reasons.items())


def _recommended(manifest: Manifest, target: str) -> str:
    """The one recommended at export, or where none is, the first that has a verdict and need not be asked for."""
    return manifest.recommended.get(target) or next(iter(_unasked(manifest, target)), "fp32")


def _unasked(manifest: Manifest, target: str) -> list[str]:
    """The precisions that have a verdict, in their order; int8 is taken only where it was named first."""
    return [item.precision for item in manifest.verdicts if item.target == target and item.precision != "int8"]


def _refuse(manifest: Manifest, target: str, precision: str) -> None:
    verdict = manifest.verdict(target, precision)
    if verdict is None:
        known = ", ".join(f"{item.target} {item.precision}" for item in manifest.verdicts) or "none"
        has_graph = any(graph.target == target and precision in graph.precisions for graph in manifest.graphs)
        raise VerificationError(
            f"{manifest.name} was never verified on {target} at {precision} (verified: {known}); export it with "
            f"--precisions {precision}{f', or {_OVERRIDE}' if has_graph else ''}"
        )
    raise VerificationError(
        f"{manifest.name} on {target} at {precision} is marked {verdict.status!r}: {verdict.reason}; "
        f"mend the export, or {_OVERRIDE} to run it anyway"
    )
