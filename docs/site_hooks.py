"""What mkdocs is told beside mkdocs.yml: the navigation, which is docs/index.md, and links that leave docs/."""

import re
from pathlib import Path

REPOSITORY = "https://github.com/vargpt-hf/vargpt-hf/blob/main/"


def navigation(index: str) -> list[dict]:
    """The sections of docs/index.md and the pages that each lists, as mkdocs takes them: `[{section: [{title: page}]}]`."""
    nav: list[dict] = [{"Home": "index.md"}]
    for section in re.split(r"^## ", index, flags=re.MULTILINE)[1:]:
        heading, _, body = section.partition("\n")
        pages = re.findall(r"\[([^]]+)\]\((?!\.\.)([\w./-]+\.md)\)", body)
        nav.append({heading.strip(): [{title[0].upper() + title[1:]: page} for title, page in pages]})
    return [entry for entry in nav if all(entry.values())]


def on_config(config):
    """Takes the navigation from docs/index.md."""
    config["nav"] = navigation((Path(config["docs_dir"]) / "index.md").read_text())
    return config


def on_page_markdown(markdown: str, **kwargs) -> str:
    """Files outside docs/ are links to the repository; a word after the language of a fence is for our tests alone."""
    markdown = re.sub(r"\]\((?:\.\./)+([^)]+)\)", rf"]({REPOSITORY}\1)", markdown)
    return re.sub(r"^```(\w+) \w+$", r"```\1", markdown, flags=re.MULTILINE)


def on_page_content(html: str, **kwargs) -> str:
    """Docstrings name code as [`name`], which is no link on a page, and types as (`name`), whose marks would be shown; they put a second
    colon before what is to stay as it is drawn."""
    html = re.sub(r"<code>`([^`<]*)`</code>", r"<code>\1</code>", html)
    return re.sub(r"\[(<code>[^<]*</code>)\]", r"\1", html).replace("::</p>", ":</p>")
