"""`python -m vargpt_hf`: the `vargpt` command for launchers that start modules, such as `torchrun -m vargpt_hf train stage.yaml`."""

from .cli import main

if __name__ == "__main__":
    main()
