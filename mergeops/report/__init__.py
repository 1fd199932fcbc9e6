"""Reports: leaderboard, plots, lineage picture, model card and web page; prints nothing.

Stands on: checkpoint, errors, scores, version.
"""

from mergeops.report.board_tables import board_markdown, board_table
from mergeops.report.card import CardParent, model_card
from mergeops.report.leaderboard import (
    Compared,
    Entry,
    Leaderboard,
    LeftOut,
    Origin,
    Row,
    leaderboard_of,
    make_leaderboard,
)
from mergeops.report.lineage_picture import Line, Node, draw_network, lineage_svg
from mergeops.report.plots import plain_label, scores_figure, search_figure, tidy
from mergeops.report.standing import BETTER, WORSE, Against, Standing, standing_of
from mergeops.report.web_page import check_page_target, write_page

__all__ = [
    "BETTER",
    "WORSE",
    "Against",
    "CardParent",
    "Compared",
    "Entry",
    "Leaderboard",
    "LeftOut",
    "Line",
    "Node",
    "Origin",
    "Row",
    "Standing",
    "board_markdown",
    "board_table",
    "check_page_target",
    "draw_network",
    "leaderboard_of",
    "lineage_svg",
    "make_leaderboard",
    "model_card",
    "plain_label",
    "scores_figure",
    "search_figure",
    "standing_of",
    "tidy",
    "write_page",
]
