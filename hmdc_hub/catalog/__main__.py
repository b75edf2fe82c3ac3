"""Write the generated files of a checkout anew: `python -m hmdc_hub.catalog`."""

from hmdc_hub.catalog.reference import generated_files

if __name__ == "__main__":
    for file, content in generated_files().items():
        file.write_text(content, encoding="utf-8")
