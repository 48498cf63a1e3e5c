// The function {{name}}: says hello to the name in the call's body.
const fdk = require('@fnproject/fdk');

fdk.handle((input) => {
  const name = (input && input.name) || 'World';
  // What a function writes is the log of the call: `kiln logs APP {{name}}` shows it.
  console.error(`saying hello to ${name}`);
  return { message: `Hello ${name}` };
});
