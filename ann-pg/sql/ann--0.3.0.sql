-- What CREATE EXTENSION ann makes. Types and operators are pgvector's.

CREATE FUNCTION ann.ann_hnsw_handler(internal) RETURNS index_am_handler
    AS 'MODULE_PATHNAME' LANGUAGE c;

CREATE FUNCTION ann.ann_diskann_handler(internal) RETURNS index_am_handler
    AS 'MODULE_PATHNAME' LANGUAGE c;

CREATE FUNCTION ann.ann_ivfpq_handler(internal) RETURNS index_am_handler
    AS 'MODULE_PATHNAME' LANGUAGE c;

CREATE ACCESS METHOD ann_hnsw TYPE INDEX HANDLER ann.ann_hnsw_handler;
COMMENT ON ACCESS METHOD ann_hnsw IS 'HNSW: a layered graph of near neighbours';

CREATE ACCESS METHOD ann_diskann TYPE INDEX HANDLER ann.ann_diskann_handler;
COMMENT ON ACCESS METHOD ann_diskann IS 'DiskANN: a graph whose links carry codes of what they lead to';

CREATE ACCESS METHOD ann_ivfpq TYPE INDEX HANDLER ann.ann_ivfpq_handler;
COMMENT ON ACCESS METHOD ann_ivfpq IS 'IVF-PQ: lists of near vectors, found by codes of a few bits';

-- In the schema that holds pgvector, so that a name that works there works for our methods too.
DO $$
DECLARE
    home text := (SELECT nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = extnamespace
                  WHERE extname = 'vector');
    method text;
    type text;
    kind text[];
BEGIN
    FOREACH method IN ARRAY ARRAY['ann_hnsw', 'ann_diskann', 'ann_ivfpq'] LOOP
        FOREACH type IN ARRAY ARRAY['vector', 'halfvec'] LOOP
            FOREACH kind SLICE 1 IN ARRAY ARRAY[['l2', '<->'], ['ip', '<#>'], ['cosine', '<=>']] LOOP
                EXECUTE format(
                    'CREATE OPERATOR CLASS %1$I.%2$I FOR TYPE %1$I.%3$I USING %4$I AS
                     OPERATOR 1 %1$I.%5$s (%1$I.%3$I, %1$I.%3$I) FOR ORDER BY pg_catalog.float_ops',
                    home, type || '_' || kind[1] || '_ops', type, method, kind[2]);
            END LOOP;
        END LOOP;
    END LOOP;
END
$$;

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

CREATE FUNCTION ann.index_lists(index regclass) RETURNS integer
    AS 'MODULE_PATHNAME', 'index_lists_wrapper' LANGUAGE c STRICT;
COMMENT ON FUNCTION ann.index_lists IS 'lists of an ann_ivfpq index; 0 until it is trained';

CREATE FUNCTION ann.verify_index(index regclass, heap_all_indexed boolean DEFAULT false) RETURNS void
    AS 'MODULE_PATHNAME', 'verify_index_wrapper' LANGUAGE c STRICT;
COMMENT ON FUNCTION ann.verify_index IS 'checks every invariant of an index; an ERROR names the first that does not hold';

CREATE FUNCTION ann.prewarm(index regclass) RETURNS bigint
    AS 'MODULE_PATHNAME', 'prewarm_wrapper' LANGUAGE c STRICT;
COMMENT ON FUNCTION ann.prewarm IS 'reads all pages of an index into memory; returns how many';

CREATE FUNCTION ann.index_recall(index regclass, sample integer DEFAULT 100, k integer DEFAULT 10)
    RETURNS double precision LANGUAGE plpgsql STRICT AS $$
DECLARE
    heap regclass;
    item text;
    operator text;
    place text;
    condition text;
    query text;
    type regtype;
    vectors text[];
    one text;
    bound double precision;
    found bigint;
    wanted bigint;
    hits bigint := 0;
    total bigint := 0;
BEGIN
    IF sample < 1 OR k < 1 THEN
        RAISE EXCEPTION 'sample = % and k = % are not allowed: at least 1', sample, k
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    SELECT i.indrelid, pg_get_indexdef(i.indexrelid, 1, true), o.oprname, n.nspname, p.opcintype,
           coalesce(pg_get_expr(i.indpred, i.indrelid), 'true')
      INTO heap, item, operator, place, type, condition
      FROM pg_index i
      JOIN pg_class c ON c.oid = i.indexrelid
      JOIN pg_am m ON m.oid = c.relam AND m.amname IN ('ann_hnsw', 'ann_diskann', 'ann_ivfpq')
      JOIN pg_opclass p ON p.oid = i.indclass[0]
      JOIN pg_amop a ON a.amopfamily = p.opcfamily AND a.amopstrategy = 1
      JOIN pg_operator o ON o.oid = a.amopopr
      JOIN pg_namespace n ON n.oid = o.oprnamespace
     WHERE i.indexrelid = index;
    IF heap IS NULL THEN
        RAISE EXCEPTION '% is not an index of ann_hnsw, ann_diskann or ann_ivfpq', index
            USING ERRCODE = 'wrong_object_type';
    END IF;
    EXECUTE format('SELECT array_agg(v::text) FROM (SELECT %1$s AS v FROM %2$s
                    WHERE %1$s IS NOT NULL AND (%3$s) ORDER BY random() LIMIT %4$s) s',
                   item, heap, condition, sample) INTO vectors;
    query := format('(SELECT %1$s OPERATOR(%2$I.%3$s) $1::%7$s AS d FROM %4$s WHERE %1$s IS NOT NULL AND (%5$s)
                      ORDER BY %1$s OPERATOR(%2$I.%3$s) $1::%7$s LIMIT %6$s) s',
                    item, place, operator, heap, condition, k, type);
    FOREACH one IN ARRAY coalesce(vectors, '{}') LOOP
        PERFORM set_config('enable_indexscan', 'off', true);
        PERFORM set_config('enable_seqscan', 'on', true);
        EXECUTE 'SELECT max(d), count(*) FROM ' || query INTO bound, wanted USING one;
        PERFORM set_config('enable_indexscan', 'on', true);
        PERFORM set_config('enable_seqscan', 'off', true);
        -- The index computes in single precision: as near as the last of the exact ones is near enough.
        EXECUTE 'SELECT count(*) FROM ' || query || ' WHERE d <= $2' INTO found
            USING one, bound + 1e-5 * greatest(abs(bound), 1e-3);
        hits := hits + found;
        total := total + wanted;
    END LOOP;
    RETURN hits::double precision / nullif(total, 0);
END
$$;
ALTER FUNCTION ann.index_recall SET enable_seqscan FROM CURRENT;
ALTER FUNCTION ann.index_recall SET enable_indexscan FROM CURRENT;
COMMENT ON FUNCTION ann.index_recall IS 'the share of the k nearest that the index finds, for sampled rows as queries';

-- They read whole indexes, or keep inserts waiting meanwhile.
REVOKE ALL ON FUNCTION ann.index_stats, ann.verify_index, ann.prewarm FROM PUBLIC;
GRANT USAGE ON SCHEMA ann TO PUBLIC;
