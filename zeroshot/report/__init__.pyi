from .page import render as render
from .result_files import Group as Group, LoadedMethod as LoadedMethod, load_results as load_results
