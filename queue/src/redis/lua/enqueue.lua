-- Stores a batch, whole or not at all. ARGV: now, most unfinished messages or '', channel, origin, then for each
-- message: id, function, app, priority, due, deadline or '', attempts max, pause min, pause max, jitter,
-- payload bytes, idempotency key or '', body.
-- Answers nothing if the queue is full, else for each message the id that was known before, else ''.
local now, max, channel, origin = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local FIRST, WIDTH = 5, 13
local ids, keys, answers, fresh = {}, {}, {}, {}
for at = FIRST, #ARGV, WIDTH do
    local id, key = ARGV[at], nil
    if ARGV[at + 11] ~= '' then
        key = ARGV[at + 1] .. ':' .. ARGV[at + 11]
    end
    local known = ids[id] or (call('EXISTS', base .. 'm:' .. id) == 1 and id)
    if not known and key then
        known = keys[key] or call('HGET', base .. 'keys', key)
    end
    if not known then
        ids[id] = id
        if key then
            keys[key] = id
        end
        fresh[#fresh + 1] = { at, key }
    end
    answers[#answers + 1] = known or ''
end
if max and #fresh > 0 then
    local unfinished = call('ZCARD', base .. 'state:' .. WAITING) + call('ZCARD', base .. 'state:' .. RUNNING)
    if unfinished + #fresh > max then
        return false
    end
end
if #fresh == 0 then
    return answers
end
local seq = call('INCRBY', base .. 'seq', #fresh) - #fresh
local lanes, first = {}, nil
for _, new in ipairs(fresh) do
    local at, key = new[1], new[2]
    local id, fn, pr, due, dl = ARGV[at], ARGV[at + 1], ARGV[at + 3], ARGV[at + 4], ARGV[at + 5]
    local lane = pr .. ':' .. fn
    seq = seq + 1
    call('HSET', base .. 'm:' .. id, 'seq', seq, 'id', id, 'fn', fn, 'app', ARGV[at + 2], 'pr', pr, 'st', WAITING,
        'due', due, 'cr', now, 'le', 0, 'at', 0, 'am', ARGV[at + 6], 'pi', ARGV[at + 7], 'pa', ARGV[at + 8],
        'ji', ARGV[at + 9], 'pb', ARGV[at + 10])
    call('SET', base .. 'b:' .. id, ARGV[at + 12])
    if dl ~= '' then
        call('HSET', base .. 'm:' .. id, 'dl', dl)
        call('ZADD', base .. 'deadlines', dl, id)
    end
    if key then
        call('HSET', base .. 'm:' .. id, 'ik', key)
        call('HSET', base .. 'keys', key, id)
    end
    call('ZADD', base .. 'lane:' .. lane, due, rank(seq, id))
    call('ZADD', base .. 'state:' .. WAITING, seq, id .. fn)
    lanes[lane] = true
    first = math.min(first or tonumber(due), tonumber(due))
end
for lane in pairs(lanes) do
    lane_changed(lane)
end
tell(channel, origin, first)
return answers
