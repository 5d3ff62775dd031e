"""The command `python -m pml_s2sd.evaluate`; it is in `pml_s2sd.evaluation.evaluate_folder`."""

from .evaluation.evaluate_folder import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
