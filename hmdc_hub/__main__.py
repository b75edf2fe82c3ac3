"""`python -m hmdc_hub`, the same program as `hmdc-hub`."""

from hmdc_hub.cli.main import main

if __name__ == "__main__":
    main()
