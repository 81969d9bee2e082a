"""The federated average, in both languages, encrypted and not."""

from __future__ import annotations

import unittest

from bed import PYTHON, RUST, bed

import expected
import pandas as pd


class MainJob(unittest.TestCase):
    def check(self, image: str, encrypted: bool) -> None:
        name = "encrypted" if encrypted else "plain"
        collaboration = bed().collaboration(name, encrypted)
        answer = collaboration.user.average(image)
        whole = pd.read_csv(collaboration.folder / "data" / "whole.csv")
        self.assertGreater(len(answer["columns"]), 5)
        self.assertEqual(expected.differences(whole, answer), [])
        for task in (answer["task"], collaboration.user.dataframe(answer["dataframe"])[
                "last_session_task"]["id"]):
            for run in collaboration.user.runs(task):
                self.assertEqual(run.status, "completed")
                self.assertIsNotNone(run.finished_at)

    def test_python(self):
        self.check(PYTHON, encrypted=False)

    def test_rust_encrypted(self):
        self.check(RUST, encrypted=True)

    def test_python_encrypted(self):
        self.check(PYTHON, encrypted=True)

    def test_rust(self):
        self.check(RUST, encrypted=False)
