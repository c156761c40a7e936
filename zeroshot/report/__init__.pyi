from .page import render as render
from .result_files import Group as Group, Method as Method, load_results as load_results
