from .exact import (
    Gallery as Gallery,
    Hits as Hits,
    column_bias as column_bias,
    correction as correction,
    in_order as in_order,
    nearest as nearest,
    products as products,
    search as search,
)
from .near_groups import has_neighbour as has_neighbour, leaders as leaders
