#!py
# salt/auth: a machine that shows the proof of an invite is admitted.
import sys


def run():
    # Salt puts the project's modules into the path only while it loads its own.
    sys.path.extend(path for path in __opts__["utils_dirs"] if path not in sys.path)
    from saltworks import hints

    return hints.auth(__opts__, data)
