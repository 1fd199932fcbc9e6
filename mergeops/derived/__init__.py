"""Models that extract, moe and transplant make of what URIs name, and as tracked trials.

    extracted, mixed, transplanted   each tool from URIs to a directory
    tool_trial                       what is the same for all: settings, inputs, and the trial

Stands on: checkpoint, errors, extraction, mixture, pipeline, progress, recipe, sources, tools,
tracking, transplant.
"""

from mergeops.derived.extracted import extract_by_uri
from mergeops.derived.mixed import mixture_of
from mergeops.derived.tool_trial import Derived, ToolLog
from mergeops.derived.transplanted import transplant_by_uri

__all__ = ["Derived", "ToolLog", "extract_by_uri", "mixture_of", "transplant_by_uri"]
