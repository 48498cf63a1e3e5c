-- The messages of these ids that are there. ARGV: ids.
local rows = {}
for _, id in ipairs(ARGV) do
    local fields = row(id)
    if fields[1] then
        rows[#rows + 1] = fields
    end
end
return rows
