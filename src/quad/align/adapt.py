"""`quad adapt` and `quad.adapt`: with the base model or without; what opens models is loaded for the first alone."""

from __future__ import annotations

from quad.admit.admit import admit
from quad.admit.request import AdaptRequest, AdaptResult
from quad.core.errors import UnsupportedError, mismatch
from quad.core.progress import Progress, silent


def adapt(request: AdaptRequest, progress: Progress = silent) -> AdaptResult:
    """Admit one LoRA to a frozen bundle and write it as a pack; see `quad.admit.admit.admit`.

    Args:
        request: with `base`, the adapter is trained and measured with it, which needs the `build` extra.
        progress: called with each stage as it begins, and the share of stages done.

    Raises:
        QuadError: as `admit`. CompatibilityError: base and bundle do not belong together.
    """
    directory = request.base
    if directory is None:
        return admit(request, progress)
    request.check()

    try:
        from quad.align.align import OpenedBase
        from quad.align.with_base import open_base
        from quad.build.fixed_threads import fixed_threads
    except ModuleNotFoundError as error:
        expected, remedy = "the build extra, which opens models", "install it: pip install 'quad[build]'; or leave the base out"
        raise UnsupportedError(mismatch("quad adapt with a base", expected, f"no module {error.name}", remedy)) from error
    with fixed_threads():
        return admit(request, progress, lambda bundle: OpenedBase(open_base(bundle, directory, request.vae), request.device))
