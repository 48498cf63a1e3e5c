-- What ended by itself and what will next. ARGV: now, most messages. Answers: running messages whose lease ended, waiting
-- ones whose deadline passed, when the first lane is due, the first that is not yet, when the first lease ends, when
-- the first deadline passes; '' for none.
local now, max = ARGV[1], ARGV[2]

local function rows(ids)
    local found = {}
    for _, id in ipairs(ids) do
        local fields = row(id)
        if fields[1] then
            found[#found + 1] = fields
        end
    end
    return found
end

local function score(sets, from)
    local first
    for _, set in ipairs(sets) do
        local found = call('ZRANGEBYSCORE', set, from, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
        if found and (not first or tonumber(found) < tonumber(first)) then
            first = found
        end
    end
    return first or ''
end

return {
    rows(call('ZRANGEBYSCORE', base .. 'leases', '-inf', now, 'LIMIT', 0, max)),
    rows(call('ZRANGEBYSCORE', base .. 'deadlines', '-inf', now, 'LIMIT', 0, max)),
    score(LANES, '-inf'),
    score(LANES, '(' .. now),
    score({ base .. 'leases' }, '-inf'),
    score({ base .. 'deadlines' }, '-inf'),
}
