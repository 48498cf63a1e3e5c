-- Gives a worker the first due messages of lanes. ARGV: now, worker, end of the lease, most bytes of payloads, '1' if
-- one message fits in any case, then for each lane: its name, most messages.
-- Answers whether all fitted, then for each lane its messages as they were: the fields and the body.
local SKIPPED_MAX, CHUNK = 1000, 100
local now, worker, till, room, is_first = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5] == '1'
local answers, all_fitted = {}, true

-- Up to `max` due messages of a lane that are not too late, which are swept elsewhere.
local function candidates(lane, max)
    local found, offset = {}, 0
    while #found < max and offset < max + SKIPPED_MAX do
        local chunk = math.min(max - #found + CHUNK, 1000)
        local ranks = call('ZRANGEBYSCORE', base .. 'lane:' .. lane, '-inf', now, 'LIMIT', offset, chunk)
        for _, place in ipairs(ranks) do
            local fields = row(string.sub(place, 17))
            if not fields[1] then
                -- The server evicted it.
                call('ZREM', base .. 'lane:' .. lane, place)
            elseif not fields[8] or tonumber(fields[8]) > tonumber(now) then
                found[#found + 1] = fields
                if #found == max then
                    break
                end
            end
        end
        if #ranks < chunk then
            break
        end
        offset = offset + chunk
    end
    return found
end

for at = 6, #ARGV, 2 do
    local lane, given = ARGV[at], {}
    local found = all_fitted and candidates(lane, tonumber(ARGV[at + 1])) or {}
    for _, fields in ipairs(found) do
        local id, bytes = fields[2], tonumber(fields[21])
        if bytes > room and not is_first then
            all_fitted = false
            break
        end
        room, is_first = room - bytes, false
        local key = base .. 'm:' .. id
        call('HSET', key, 'st', RUNNING, 'le', fields[13] + 1, 'at', fields[14] + 1, 'wk', worker, 'sa', now, 'lu', till)
        call('ZREM', base .. 'lane:' .. lane, rank(fields[1], id))
        if fields[8] then
            call('ZREM', base .. 'deadlines', id)
        end
        call('ZREM', base .. 'state:' .. WAITING, id .. fields[3])
        call('ZADD', base .. 'state:' .. RUNNING, fields[1], id .. fields[3])
        call('ZADD', base .. 'leases', till, id)
        fields[22] = call('GET', base .. 'b:' .. id)
        given[#given + 1] = fields
    end
    if #given > 0 then
        count('running', given[1][3], #given)
    end
    lane_changed(lane)
    answers[#answers + 1] = given
end
return { all_fitted and 1 or 0, answers }
