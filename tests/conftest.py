import os

from hypothesis import settings

# The same examples in every CI run; new ones at a developer's desk, where a failure can be looked into.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
