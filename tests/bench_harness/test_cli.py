from __future__ import annotations

import json

from benchmarks.harness.cli import one_line_each


def test_a_contenders_figures_are_one_line() -> None:
    found = {"facts": {}, "cells": {"a/b": {"unit": "ms", "contenders": {"go": {"x": {"y": 1}}, "saq": {"x": [2, 3]}}}}}
    text = one_line_each(found)
    assert json.loads(text) == found
    assert '\n    "go": {"x": {"y": 1}},\n    "saq": {"x": [2, 3]}\n' in text
