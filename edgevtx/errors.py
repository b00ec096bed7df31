"""Every error that edgevtx raises on purpose.

    EdgevtxError
    ├── InputError                what the caller passed is wrong: a frame, an option, a path
    │   └── SourceError           a camera, video or image could not be opened or read
    ├── BundleError               a bundle is damaged, unsafe, foreign or from a newer schema
    ├── CheckpointError           a checkpoint is not what the recipe needs
    ├── ExportError               tracing or rewriting a graph failed
    ├── VerificationError         a result differs from the reference, or could not have shown that it does
    ├── RuntimeUnavailableError   a runtime, provider, device or optional package is missing here
    │   └── DeviceError           a call to a GPU's driver or engine failed while it was in use
    ├── CompileError              no graph of the bundle serves this target, or the vendor's compiler refused it
    └── OutputError               a result could not be written: unwritable folder, full disk

A message is one sentence of what was wrong, what was expected, and what to do.
"""

from __future__ import annotations


class EdgevtxError(Exception):
    """Base of all errors of edgevtx; catch it to catch them all."""


class InputError(EdgevtxError, ValueError):
    """The caller's frame, option or path cannot be used."""


class SourceError(InputError):
    """A source of frames could not be opened, or stopped giving frames before its end."""


class BundleError(EdgevtxError):
    """A bundle is damaged, unsafe, not a bundle, or written by a newer schema."""


class CheckpointError(EdgevtxError):
    """A checkpoint cannot be read or does not fit the family."""


class ExportError(EdgevtxError):
    """A module could not be traced, or a graph could not be rewritten."""


class VerificationError(EdgevtxError):
    """An engine or graph does not give the reference's answer, or was never shown to."""


class RuntimeUnavailableError(EdgevtxError):
    """A runtime, execution provider, device or optional package is not usable on this machine."""


class DeviceError(RuntimeUnavailableError):
    """A call to a device's driver, or to an engine on it, failed while it was in use; the message names the call."""


class CompileError(EdgevtxError):
    """The bundle has no graph for this target, or the target's compiler refused it."""


class OutputError(EdgevtxError):
    """A file could not be written."""
