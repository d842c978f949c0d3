"""The zoo browser: what its static page in `space/` shows, and the folder that holds both."""

from .site import Site, build_site
from .zoo import zoo_facts

__all__ = ['Site', 'build_site', 'zoo_facts']
