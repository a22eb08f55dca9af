"""Looking a dataset over: a contact sheet, and captions that can be edited in the page (`views`, `routes`)."""

from __future__ import annotations

from typing import Any

from ..backend.musubi_backend import content
from ..backend.musubi_backend.options.argv import to_argv
from ..backend.musubi_backend.options.option import VIEW_DATASET
from . import views
from .dataset import DATASET
from .jobs import guard
from .jobs.follow import run_tool
from .spec import Host, Input, Node, NodeSpec, Output, Result
from .widgets import settings, widget


class DatasetViewer(Node):
    spec = NodeSpec(
        id="MusubiTuner_DatasetViewer",
        display_name="Dataset Viewer",
        category="MusubiTuner/Dataset",
        description="Look a dataset over before training, page by page: images as they are cut, the first, middle and last frame of "
        "clips, buckets, the exact frames that are trained, captions and problems. Captions can be edited and added "
        "here; run again to see them in the image.",
        inputs=(
            Input("dataset", DATASET, "From Dataset Config"),
            widget(VIEW_DATASET, "page"),
            widget(VIEW_DATASET, "items_per_page"),
            widget(VIEW_DATASET, "tile_size"),
            widget(VIEW_DATASET, "architecture"),
        ),
        outputs=(
            Output("sheet", "IMAGE", "The contact sheet"),
            Output("report", "STRING", "The list: sizes, buckets, frames that are trained, captions, and what is left out and why"),
        ),
        is_output=True,
    )

    async def run(self, host: Host, **inputs: Any) -> Result:
        toml = guard.inside(str(inputs["dataset"]["toml"]), host.allowed_roots(), "the dataset file")
        chosen = settings(self.spec.inputs, inputs)
        view_id = content.digest(str(toml), chosen)
        sheet = host.temp_dir / "musubi_tuner" / f"dataset_{view_id}.png"
        for folder in (sheet.parent, views.folder(host.home)):
            folder.mkdir(parents=True, exist_ok=True)
        values = {"dataset_config": str(toml), "output": str(sheet), "report": str(views.path(host.home, view_id)), **chosen}
        await run_tool(host, VIEW_DATASET, to_argv(VIEW_DATASET, values), foreign=False, gpu=False, warns=False)
        view = views.load(host.home, view_id)
        text = str(view["text"]).split("\n", 1)[0]
        page_data = {"musubi_dataset_view": [{"id": view_id}]}
        return Result((host.frames(sheet), view["text"]), text=text, shown=(sheet,), files=(sheet,), page_data=page_data)
