-- From 0.2.0 to 0.3.0: ann.index_stats counts lists.

-- What a function returns cannot be changed. Who was allowed to call it has to be told so again.
DROP FUNCTION ann.index_stats;

CREATE FUNCTION ann.index_stats(
    index regclass,
    OUT kind text,
    OUT vectors bigint,
    OUT tombstones bigint,
    OUT slots bigint,
    OUT twins bigint,
    OUT links bigint,
    OUT levels integer,
    OUT element text,
    OUT code_bits integer,
    OUT layout text,
    OUT bytes bigint,
    OUT instruction_set text,
    OUT lists integer
) RETURNS SETOF record
    AS 'MODULE_PATHNAME', 'index_stats_wrapper' LANGUAGE c STRICT;
COMMENT ON FUNCTION ann.index_stats IS 'what an index is made of and how large it is; reads all of it';
REVOKE ALL ON FUNCTION ann.index_stats FROM PUBLIC;
