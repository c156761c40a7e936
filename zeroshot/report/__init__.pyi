from .load_results import Group as Group, Method as Method, load_results as load_results
from .page import render as render
