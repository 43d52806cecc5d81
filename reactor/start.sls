#!py
# salt/minion/<id>/start: reconcile looks, if that is a member.
import sys


def run():
    # Salt puts the project's modules into the path only while it loads its own.
    sys.path.extend(path for path in __opts__["utils_dirs"] if path not in sys.path)
    from saltworks import hints

    return hints.start(__opts__, data)
