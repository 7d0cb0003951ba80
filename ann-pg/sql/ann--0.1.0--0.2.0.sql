-- From 0.1.0 to 0.2.0: the access method ann_ivfpq.

CREATE FUNCTION ann.ann_ivfpq_handler(internal) RETURNS index_am_handler
    AS 'MODULE_PATHNAME' LANGUAGE c;

CREATE ACCESS METHOD ann_ivfpq TYPE INDEX HANDLER ann.ann_ivfpq_handler;
COMMENT ON ACCESS METHOD ann_ivfpq IS 'IVF-PQ: lists of near vectors, found by codes of a few bits';

-- As the installation script does it.
DO $$
DECLARE
    home text := (SELECT nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = extnamespace
                  WHERE extname = 'vector');
    type text;
    kind text[];
BEGIN
    FOREACH type IN ARRAY ARRAY['vector', 'halfvec'] LOOP
        FOREACH kind SLICE 1 IN ARRAY ARRAY[['l2', '<->'], ['ip', '<#>'], ['cosine', '<=>']] LOOP
            EXECUTE format(
                'CREATE OPERATOR CLASS %1$I.%2$I FOR TYPE %1$I.%3$I USING ann_ivfpq AS
                 OPERATOR 1 %1$I.%4$s (%1$I.%3$I, %1$I.%3$I) FOR ORDER BY pg_catalog.float_ops',
                home, type || '_' || kind[1] || '_ops', type, kind[2]);
        END LOOP;
    END LOOP;
END
$$;

CREATE FUNCTION ann.index_lists(index regclass) RETURNS integer
    AS 'MODULE_PATHNAME', 'index_lists_wrapper' LANGUAGE c STRICT;
COMMENT ON FUNCTION ann.index_lists IS 'lists of an ann_ivfpq index; 0 until it is trained';

-- Which indexes it takes is part of it.
CREATE OR REPLACE FUNCTION ann.index_recall(index regclass, sample integer DEFAULT 100, k integer DEFAULT 10)
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
