# The function {{name}}: says hello to the name in the call's body.
require 'fdk'

def hello(context:, input:)
  name = input.is_a?(Hash) ? input['name'] : input
  name = 'World' if name.to_s.strip.empty?
  # What a function logs is the log of the call: `kiln logs APP {{name}}` shows it.
  FDK.log(entry: "saying hello to #{name}")
  { message: "Hello #{name}" }
end

FDK.handle(target: :hello)
