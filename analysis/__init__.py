"""From finished runs to an answer, or to the reason why there is none yet.

load (`runs`) -> fit (`fits`) and compare (`inference`) -> draw (`figures`) -> tell (`report`)
"""
