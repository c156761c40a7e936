from .load_results import Group as Group, Method as Method, gather as gather
from .page import render as render
