"""Command line: makes datasets/cache/NAME.hdf5, lists the names, or makes the small set anew."""

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)

try:
    from datasets import DatasetError, load, small, store
    from datasets.recipes import RECIPES
except ModuleNotFoundError as error:
    sys.exit(f"error: the Python package {error.name} is missing: pip install numpy h5py tqdm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", nargs="?", metavar="NAME", help="a name that --list prints")
    parser.add_argument("--size", type=int, metavar="N", help="also make NAME-N, the first N")
    parser.add_argument("--list", action="store_true", help="print the data sets")
    parser.add_argument("--make-small", action="store_true", help=f"write {small.PATH.name}")
    args = parser.parse_args()
    if args.size is not None and args.size < 1:
        parser.error(f"--size is {args.size}: at least 1")
    if args.list:
        print_list()
    elif args.make_small:
        small.write(load.load(load.DEMO))
        for stale in store.cache_path(small.NAME).parent.glob(f"{small.NAME}*.hdf5"):
            stale.unlink()
        print(small.PATH)
    elif args.name:
        path = load.make(args.name)
        if args.size:
            path = store.cache_path(load.subset(load.load(args.name), args.size).name)
        print(path)
    else:
        parser.error("NAME, --list or --make-small is needed")


def print_list():
    set_ = small.read()
    rows = [(set_.name, *set_.train.shape, len(set_.test), set_.metric, set_.license)]
    rows += [(r.name, r.n, r.dim, r.queries, r.metric, r.license) for r in RECIPES.values()]
    print(f"{'name':32}{'n':>10}{'dim':>6}{'queries':>9}  {'metric':11}license")
    for name, n, dim, queries, metric, license in rows:
        print(f"{name:32}{n:>10,}{dim:>6}{queries:>9,}  {metric:11}{license}")


if __name__ == "__main__":
    try:
        main()
    except (DatasetError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; what was downloaded of an ann-benchmarks file is kept")
